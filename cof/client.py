"""A pipeline that runs elsewhere: `CoF.connect` to what `cof serve` started."""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from cof.answer import NO_IMAGE, Answer, refused_answer
from cof.errors import CofError, CofWarning, ServerError
from cof.geometry.boxes import XYXY
from cof.geometry.regions import EVERYTHING, Region
from cof.images import load_image
from cof.query import Query, QueryLike, as_query, check_question
from cof.servers import Away, Servers
from cof.settings import Settings
from cof.streaming import SentText, for_one
from cof.types import Decoding, EncodedImage, OnText, Timings

if TYPE_CHECKING:
    import httpx2
    from PIL.Image import Image

    from cof.images import ImageSource

_BUSY = (429, 502, 503)
_CONNECT_S = 10.0
_MODELS, _CHAT = "/v1/models", "/v1/chat/completions"


class RemoteCoF:
    """Asks servers as `cof.CoF` asks an engine, and gives the same `Answer`s.

    A request goes to the server with the fewest under way. If that one is away or busy, it goes to
    another, or is sent again after a while: answers do not depend on what was asked before, so
    that nothing is lost or done twice. Masks and heat maps do not travel: an answer's `region` has
    its boxes alone.

    Attributes:
        model: the name of the model that is served.
        urls: of the servers.

    Example:
        with CoF.connect("http://127.0.0.1:8000", strength=3.0) as cof:
            print(cof("photo.jpg", "What does the sign say?").text)
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        retry_s: float = 120.0,
        allow_url: bool = False,
        **settings: Any,
    ) -> None:
        """
        Args:
            url: such as `http://127.0.0.1:8000`; several servers of the same model as a sequence,
                or in one text with commas between them.
            api_key: the servers', if they have one.
            timeout_s: how long a server may take for one request before it counts as away.
            retry_s: how long a request is sent again while all servers are away or busy.
            allow_url: whether images may be given as http(s) addresses, which are fetched here.
            settings: any field of `cof.settings.Settings`, over the server's.

        Raises:
            CofError: an unknown setting, no such server, or servers of different models.
        """
        try:
            import httpx2
        except ImportError:
            raise CofError("Asking a server needs httpx2: pip install 'cof[serve]'.") from None
        Settings().changed(**settings)
        self.settings = settings
        self.allow_url = allow_url
        self._servers = Servers(url, retry_s)
        self.urls = self._servers.urls
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )
        self._lost = (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.TimeoutException)
        self._failed = (httpx2.HTTPError, httpx2.InvalidURL)
        try:
            self.model = _served(self._ask("GET", _MODELS))
            if len(self.urls) > 1:
                self._check_models()
        except CofError:
            self.close()
            raise

    def __enter__(self) -> RemoteCoF:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def encode(self, image: ImageSource) -> EncodedImage:
        """An image as it is sent, to be passed in its place; worth it for several calls about it.

        Raises:
            CofError: the image cannot be used.
        """
        loaded = load_image(image, allow_url=self.allow_url)
        return EncodedImage(loaded, data_url(loaded))

    def __call__(
        self,
        image: ImageSource | EncodedImage,
        question: str,
        *,
        boxes: Sequence[Sequence[float]] | None = None,
        polygon: Sequence[tuple[float, float]] | None = None,
        decoding: Decoding | None = None,
        on_text: Callable[[str], object] | None = None,
    ) -> Answer:
        """As `cof.CoF.__call__`."""
        query = Query(image, question, boxes=boxes, polygon=polygon)
        return self.batch([query], decoding=decoding, on_text=for_one(on_text))[0]

    def batch(
        self,
        queries: Iterable[QueryLike],
        *,
        decoding: Decoding | None = None,
        batch_size: int = 16,
        on_error: Literal["raise", "return"] = "raise",
        on_text: OnText | None = None,
    ) -> list[Answer]:
        """As `cof.CoF.batch`; `batch_size` requests are under way at a time, each in a thread.
        Where a server fails, and no question is at fault, the call ends whatever `on_error` says.

        `on_text` is called in these threads, in one of them at a time.
        """
        asked = [as_query(item) for item in queries]
        pool = ThreadPoolExecutor(batch_size, "cof-client")
        telling = Lock()

        def tell(place: int, piece: str) -> None:
            assert on_text is not None
            with telling:
                on_text(place, piece)

        try:
            waiting = []
            for place, query in enumerate(asked):
                text = None if on_text is None else SentText(partial(tell, place))
                waiting.append(pool.submit(self._answer, query, decoding or Decoding(), text))
            answers = []
            for query, answer in zip(asked, waiting, strict=True):
                try:
                    answers.append(answer.result())
                except CofError as error:
                    if on_error == "raise" or isinstance(error, ServerError):
                        raise
                    settings = Settings().changed(**self.settings)
                    answers.append(refused_answer(NO_IMAGE, query.question, settings, error))
            return answers
        finally:
            pool.shutdown(cancel_futures=True)

    def _answer(self, query: Query, decoding: Decoding, sent: SentText | None) -> Answer:
        question = check_question(query.question)
        image = self._ready(query.image)
        shown = [image] if query.beside is None else [image, self._ready(query.beside)]
        parts = [{"type": "image_url", "image_url": {"url": of.pixels}} for of in shown]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}],
            **_decoding_fields(decoding),
        }
        own = {"cof": self._options(query), "stream": sent is not None}
        reply = self._ask("POST", _CHAT, {**body, **own}, sent)
        text = str(reply["choices"][0]["message"]["content"])
        if sent is not None:
            sent.finish(text)
        if "cof" not in reply:
            raise ServerError("The server answers without looking closer: start it with cof serve.")
        look = reply["cof"]
        boxes = _boxes(look["boxes"])

        @cache
        def plain() -> str:
            if not boxes:
                return text
            # without `cof`, vLLM would process image and text in its own way
            other = self._ask("POST", _CHAT, {**body, "cof": {"focus": "none"}})
            return str(other["choices"][0]["message"]["content"])

        region = EVERYTHING if look["whole"] else Region(boxes=boxes) if boxes else None
        return Answer(
            text=text,
            boxes=boxes,
            raw_boxes=_boxes(look["raw_boxes"]),
            found=look["found"],
            grounder=look["grounder"],
            grounding_text=look["grounding_text"],
            confidence=look["confidence"],
            reason=look["reason"],
            region=region,
            settings=Settings(**look["settings"]),
            timings=Timings(look["timings"]["ground_s"], look["timings"]["answer_s"]),
            image=image.image,
            question=question,
            num_tokens=look["num_tokens"],
            answer_confidence=look["answer_confidence"],
            _plain=plain,
        )

    def _ready(self, source: ImageSource | EncodedImage) -> EncodedImage:
        """What `encode` makes; an image that an engine has encoded is its pixels here."""
        if not isinstance(source, EncodedImage):
            return self.encode(source)
        return source if isinstance(source.pixels, str) else self.encode(source.image)

    def _options(self, query: Query) -> dict[str, Any]:
        """What the request's `cof` holds."""
        boxes, region = query.boxes, query.region
        if region is not None and not region.whole and region.mask is None:
            boxes, region = region.boxes, None
        if query.mask is not None or region is not None:
            raise CofError("Masks do not travel to a server: give boxes or a polygon.")
        if query.options:
            raise CofError(
                "Servers cannot say how likely a reply is: leave options out (cof eval: choose "
                "another --prompt-style, or leave --server out)."
            )
        own = query.settings.as_dict() if query.settings is not None else self.settings
        own = {name: value for name, value in own.items() if (name, value) != ("detector", None)}
        given = {
            "strength": query.strength,
            "boxes": boxes,
            "polygon": query.polygon,
            "grounding_question": query.grounding_question,
        }
        return own | {name: value for name, value in given.items() if value is not None}

    def _check_models(self) -> None:
        """Refuse servers of different models. One that is away is asked again later; should it
        have another model then, it refuses the first request."""
        for url in self.urls:
            try:
                model = _served(self._send(url, "GET", _MODELS))
            except Away as problem:
                warnings.warn(f"{problem} It is asked again later.", CofWarning, stacklevel=4)
                continue
            if model != self.model:
                raise ServerError(
                    f"{url} serves {model}, and another server {self.model}: name servers of one "
                    "model."
                )

    def _ask(self, *request: Any) -> dict[str, Any]:
        """The reply to a request (`_send`), of the first server that gives one."""
        return self._servers.ask(lambda url: self._send(url, *request))

    def _send(
        self,
        url: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        sent: SentText | None = None,
    ) -> dict[str, Any]:
        """One server's reply; `sent` is told of its text as it grows.

        Raises:
            Away: it is away or busy.
            ServerError: it gives no answers, whatever it is asked.
            CofError: it refuses this request.
        """
        try:
            if sent is None:
                reply = self._http.request(method, url + path, json=body)
            else:
                reply = self._stream(method, url + path, body, sent)
        except self._lost as error:
            raise Away(f"{url} cannot be reached: {error}.") from None
        except self._failed as error:
            raise ServerError(f"{url} cannot be asked: {error}.") from None
        content = _content(reply)
        if reply.status_code == 200 and content:
            return content
        told = content.get("error")  # vLLM's 401 has a text there
        sentence = told.get("message") if isinstance(told, dict) else told
        if sentence and reply.status_code == 400:
            raise CofError(sentence)
        failure = Away if reply.status_code in _BUSY else ServerError
        if sentence:
            raise failure(f"{url}: {sentence}")
        raise failure(f"{url} answered {reply.status_code}, so it is no cof serve.")

    def _stream(
        self, method: str, url: str, body: Mapping[str, Any] | None, sent: SentText
    ) -> httpx2.Response:
        """The reply to a request with `stream`, as it would be without."""
        import httpx2

        sent.begin()
        text = ""
        last: dict[str, Any] = {}
        with self._http.stream(method, url, json=body) as reply:
            if not reply.headers.get("content-type", "").startswith("text/event-stream"):
                reply.read()
                return reply
            for line in filter(None, reply.iter_lines()):
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    whole = {**last, "choices": [{"message": {"content": text}}]}
                    return httpx2.Response(200, json=whole)
                last = json.loads(data)
                if "error" in last:  # too late for a status
                    status = 503 if last["error"].get("code") == "stopping" else 500
                    return httpx2.Response(status, json=last)
                if piece := last["choices"][0]["delta"].get("content"):
                    text += piece
                    sent.grow(piece)
        raise httpx2.RemoteProtocolError("the stream broke off")


def _served(models: Mapping[str, Any]) -> str:
    """The name of the model that a server tells."""
    return str(models["data"][0]["id"])


def data_url(image: Image) -> str:
    """Without loss, so that the server sees the same pixels."""
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _decoding_fields(decoding: Decoding) -> dict[str, Any]:
    if decoding.num_beams != 1 or decoding.box_template is not None:
        raise CofError("A server decodes without num_beams and box_template: leave them out.")
    fields = {
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
    }
    return fields if decoding.seed is None else {**fields, "seed": decoding.seed}


def _boxes(boxes: Sequence[Sequence[float]]) -> tuple[XYXY, ...]:
    return tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes)


def _content(reply: httpx2.Response) -> dict[str, Any]:
    """The JSON object of a reply; empty if it is none."""
    try:
        content = reply.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
