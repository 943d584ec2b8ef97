"""A pipeline that runs elsewhere: `CoF.connect` to what `cof serve` started."""

from __future__ import annotations

import base64
import io
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from cof.answer import NO_IMAGE, Answer, refused_answer
from cof.errors import CofError
from cof.geometry.boxes import XYXY
from cof.geometry.regions import EVERYTHING, Region
from cof.images import load_image
from cof.query import Query, QueryLike, as_query, check_question
from cof.settings import Settings
from cof.streaming import SentText
from cof.types import Decoding, EncodedImage, OnText, Timings

if TYPE_CHECKING:
    import httpx2
    from PIL.Image import Image

    from cof.images import ImageSource

_BUSY = (429, 502, 503)
_LONGEST_PAUSE_S = 5.0


class RemoteCoF:
    """Asks a server as `cof.CoF` asks an engine, and gives the same `Answer`s.

    Requests that meet no server, or one that is busy, are sent again after a while: answers do not
    depend on what was asked before, so that nothing is lost or done twice. Masks and heat maps do
    not travel: an answer's `region` has its boxes alone.

    Example:
        with CoF.connect("http://127.0.0.1:8000", strength=3.0) as cof:
            print(cof("photo.jpg", "What does the sign say?").text)
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        retry_s: float = 120.0,
        allow_url: bool = False,
        **settings: Any,
    ) -> None:
        """
        Args:
            url: such as `http://127.0.0.1:8000`.
            api_key: the server's, if it has one.
            timeout_s: how long one request may take.
            retry_s: how long a request is sent again while the server is away or busy.
            allow_url: whether images may be given as http(s) addresses, which are fetched here.
            settings: any field of `cof.settings.Settings`, over the server's.

        Raises:
            CofError: an unknown setting, or no such server.
        """
        try:
            import httpx2
        except ImportError:
            raise CofError("Asking a server needs httpx2: pip install 'cof[serve]'.") from None
        Settings().changed(**settings)
        self.settings = settings
        self.allow_url = allow_url
        self._retry_s = retry_s
        self._url = url.rstrip("/")
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {}, timeout=timeout_s
        )
        self._lost = (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ConnectTimeout)
        self._failed = (httpx2.HTTPError, httpx2.InvalidURL)
        try:
            self.model = str(self._ask("GET", "/v1/models")["data"][0]["id"])
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
        tell = None if on_text is None else lambda _, piece: on_text(piece)
        return self.batch([query], decoding=decoding, on_text=tell)[0]

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
                    if on_error == "raise":
                        raise
                    settings = Settings().changed(**self.settings)
                    answers.append(refused_answer(NO_IMAGE, query.question, settings, error))
            return answers
        finally:
            pool.shutdown(cancel_futures=True)

    def _answer(self, query: Query, decoding: Decoding, sent: SentText | None) -> Answer:
        question = check_question(query.question)
        image = self._load(query.image)
        shown = [image] if query.beside is None else [image, self._load(query.beside)]
        parts = [{"type": "image_url", "image_url": {"url": data_url(of)}} for of in shown]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}],
            **_decoding_fields(decoding),
        }
        own = {"cof": self._options(query), "stream": sent is not None}
        reply = self._ask("POST", "/v1/chat/completions", {**body, **own}, sent)
        text = str(reply["choices"][0]["message"]["content"])
        if sent is not None:
            sent.finish(text)
        if "cof" not in reply:
            raise CofError(f"{self._url} answers without looking closer: start it with cof serve.")
        look = reply["cof"]
        boxes = _boxes(look["boxes"])

        @cache
        def plain() -> str:
            if not boxes:
                return text
            other = self._ask("POST", "/v1/chat/completions", body)
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
            image=image,
            question=question,
            num_tokens=look["num_tokens"],
            _plain=plain,
        )

    def _load(self, source: ImageSource | EncodedImage) -> Image:
        if isinstance(source, EncodedImage):
            return source.image
        return load_image(source, allow_url=self.allow_url)

    def _options(self, query: Query) -> dict[str, Any]:
        """What the request's `cof` holds."""
        boxes, region = query.boxes, query.region
        if region is not None and not region.whole and region.mask is None:
            boxes, region = region.boxes, None
        if query.mask is not None or region is not None:
            raise CofError("Masks do not travel to a server: give boxes or a polygon.")
        own = query.settings.as_dict() if query.settings is not None else self.settings
        given = {
            "strength": query.strength,
            "boxes": boxes,
            "polygon": query.polygon,
            "grounding_question": query.grounding_question,
        }
        return own | {name: value for name, value in given.items() if value is not None}

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        sent: SentText | None = None,
    ) -> dict[str, Any]:
        """The reply to a request, which is sent again while nobody is there to answer it; `sent` is
        told of its text as it grows."""
        ends = time.monotonic() + self._retry_s
        pause = 0.1
        while True:
            try:
                if sent is None:
                    reply = self._http.request(method, self._url + path, json=body)
                else:
                    reply = self._stream(method, self._url + path, body, sent)
            except self._lost as error:
                problem = f"{self._url} cannot be reached: {error}."
            except self._failed as error:
                raise CofError(f"{self._url} cannot be asked: {error}.") from None
            else:
                content = _content(reply)
                if reply.status_code == 200 and content:
                    return content
                problem = content.get("error", {}).get("message") or (
                    f"{self._url} answered {reply.status_code}, so it is no cof serve."
                )
                if reply.status_code not in _BUSY:
                    raise CofError(problem)
            wait = pause * random.uniform(0.5, 1)  # so that not all of them come back at once
            if time.monotonic() + wait > ends:
                raise CofError(problem)
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

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
                if "error" in last:
                    return httpx2.Response(500, json=last)
                if piece := last["choices"][0]["delta"].get("content"):
                    text += piece
                    sent.grow(piece)
        raise httpx2.RemoteProtocolError("the stream broke off")


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
