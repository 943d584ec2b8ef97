"""A pipeline that runs elsewhere: `CoF.connect` to what `cof serve` started."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from cof.answer import Answer, Asking, SentText, refused_answer
from cof.errors import CofError, ServerError
from cof.geometry.boxes import XYXY
from cof.geometry.regions import EVERYTHING, Region
from cof.images import MAX_PIXELS, ImageSource, data_url, embedded, load_image, open_checked
from cof.limits import MAX_UPLOAD_BYTES, UPLOAD_FORMATS
from cof.query import NO_IMAGE, Query, QueryLike, as_query
from cof.servers import Away, Servers
from cof.settings import Settings
from cof.types import Decoding, EncodedImage, Generation, OnText, Slot, Timings, confidence

if TYPE_CHECKING:
    import httpx2

_BUSY = (429, 502, 503)
_CONNECT_S = 10.0
_MODELS, _CHAT = "/v1/models", "/v1/chat/completions"


class RemoteCoF(Asking, AbstractContextManager["RemoteCoF"]):
    """Asks servers as `cof.CoF` asks an engine, and gives the same `Answer`s.

    A request goes to the server with the fewest under way. If that one is away or busy, it goes to
    another, or is sent again after a while: answers do not depend on what was asked before, so
    nothing is lost or done twice. Masks and heat maps do not travel: a `region` has boxes alone.

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
            url: such as `http://127.0.0.1:8000`; several of one model: a sequence, or with commas.
            api_key: the servers', if they have one.
            timeout_s: how long a server may take for one request before it counts as away.
            retry_s: how long a request is sent again while all servers are away or busy.
            allow_url: whether images may be given as http(s) addresses, which are fetched here.
            settings: any field of `cof.settings.Settings`, over the server's.

        Raises:
            CofError: an unknown setting, or no such server.
        """
        try:
            import httpx2
        except ImportError:
            raise CofError("Asking a server needs httpx2: pip install 'cof[serve]'.") from None
        self.settings = settings
        self._settings = Settings().changed(**settings)
        self.allow_url = allow_url
        self._servers = Servers(url, retry_s)
        self.urls = self._servers.urls
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )
        try:
            self.model = str(self._ask("GET", _MODELS)["data"][0]["id"])
        except CofError:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def encode(self, image: ImageSource) -> EncodedImage:
        """An image as it is sent, to be passed in its place; worth it for several calls about it.
        It is the image's own file where servers take such files, and else a PNG.

        Raises:
            CofError: the image cannot be used.
        """
        loaded = load_image(image, allow_url=self.allow_url)
        return EncodedImage(loaded, data_url(_own_file(image) or loaded))

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
        telling = Lock()

        def tell(place: int, piece: str) -> None:
            with telling:
                on_text(place, piece)  # type: ignore[misc]

        def ask(place: int, query: Query) -> Answer:
            sent = on_text and SentText(partial(tell, place))
            try:
                return self._answer(query, decoding or Decoding(), sent)
            except CofError as error:
                if on_error == "raise" or isinstance(error, ServerError):
                    raise
                return refused_answer(NO_IMAGE, query.question, self._settings, error)

        pool = ThreadPoolExecutor(batch_size, "cof-client")
        try:
            return list(pool.map(ask, count(), asked))
        finally:
            pool.shutdown(cancel_futures=True)

    def _answer(self, query: Query, decoding: Decoding, sent: SentText | None) -> Answer:
        if decoding.num_beams != 1 or decoding.box_template is not None:
            raise CofError("A server decodes without num_beams and box_template: leave them out.")
        chat = query.read()
        image = self._ready(NO_IMAGE if chat.image is None else chat.image)
        others = list(map(self._ready, chat.others))

        def part(of: str | Slot | int) -> dict[str, Any]:
            if of is Slot.PROMPT or isinstance(of, str):
                return {"type": "text", "text": chat.prompt if of is Slot.PROMPT else of}
            shown = others[of] if isinstance(of, int) else image
            return {"type": "image_url", "image_url": {"url": shown.pixels}}

        body = {
            "model": self.model,
            "messages": [
                {"role": turn.role, "content": list(map(part, turn.parts))} for turn in chat.turns
            ],
            "max_tokens": decoding.max_new_tokens,
            **{name: getattr(decoding, name) for name in ("temperature", "top_p", "seed")},
        }
        own = {"cof": self._options(query), "stream": sent is not None, "logprobs": True}
        if sent is not None:
            own["stream_options"] = {"include_usage": True}
        reply = self._ask("POST", _CHAT, {**body, **own}, sent)
        text = _text(reply)
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
            return _text(other)

        told = _counts(reply)
        told |= {each.name: look[each.name] for each in fields(Answer) if each.name in look}
        told |= {
            "boxes": boxes,
            "raw_boxes": _boxes(look["raw_boxes"]),
            "region": EVERYTHING if look["whole"] else Region(boxes=boxes) if boxes else None,
            "settings": Settings(**look["settings"]),
            "timings": Timings(look["timings"]["ground_s"], look["timings"]["answer_s"]),
        }
        return Answer(**told, text=text, image=image.image, question=chat.prompt, _plain=plain)

    def _ready(self, source: ImageSource | EncodedImage) -> EncodedImage:
        """What `encode` makes; an image that an engine has encoded is its pixels here."""
        if isinstance(source, EncodedImage) and isinstance(source.pixels, str):
            return source
        return self.encode(source.image if isinstance(source, EncodedImage) else source)

    def _options(self, query: Query) -> dict[str, Any]:
        """What the request's `cof` holds."""
        region = query.region
        if region is not None and not region.whole and region.mask is None:
            query = replace(query, boxes=region.boxes, region=None)
        if query.mask is not None or query.region is not None:
            raise CofError("Masks do not travel to a server: give boxes or a polygon.")
        if query.options:
            raise CofError(
                "Servers cannot say how likely a reply is: leave options out (cof eval: choose "
                "another --prompt-style, or leave --server out)."
            )
        own = query.settings.as_dict() if query.settings is not None else self.settings
        own = {name: value for name, value in own.items() if (name, value) != ("detector", None)}
        names = ("strength", "boxes", "polygon", "grounding_question")
        given = {name: getattr(query, name) for name in names}
        given["image"] = query.image if query.messages is not None else None
        return own | {name: value for name, value in given.items() if value is not None}

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
        import httpx2

        try:
            with self._http.stream(method, url + path, json=body) as reply:
                status, content = _read(reply, sent)
        except (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.TimeoutException) as error:
            raise Away(f"{url} cannot be reached: {error}.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ServerError(f"{url} cannot be asked: {str(error).rstrip('.')}.") from None
        if status == 200 and content:
            choice = content.get("choices", [{}])[0]
            if choice.get("finish_reason", "stop") in (None, "abort"):
                raise Away(f"{url} is being stopped.")
            return content
        told = content.get("error")  # vLLM's 401 has a text there
        sentence = told.get("message") if isinstance(told, dict) else told
        if sentence and status == 400:
            raise CofError(sentence)
        said = f": {sentence}" if sentence else f" answered {status}, so it is no cof serve."
        raise (Away if status in _BUSY else ServerError)(url + said)


def _read(reply: httpx2.Response, sent: SentText | None) -> tuple[int, dict[str, Any]]:
    """A reply's status and JSON object (empty if it is none), as they are without streaming."""
    import httpx2

    if sent is None or not reply.headers.get("content-type", "").startswith("text/event-stream"):
        try:
            content = json.loads(reply.read())
        except ValueError:
            content = {}
        return reply.status_code, content if isinstance(content, dict) else {}
    sent.begin()
    message = {"content": "", "reasoning": ""}
    tokens: list[dict[str, Any]] = []
    whole: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for line in filter(None, reply.iter_lines()):
        if line == "data: [DONE]":
            choice = {**last, "message": message, "logprobs": {"content": tokens}}
            return 200, {**whole, "choices": [choice]}
        whole |= (chunk := json.loads(line.removeprefix("data: ")))
        if "error" in chunk:  # too late for a status
            return (503 if chunk["error"].get("code") == "stopping" else 500), chunk
        for last in chunk["choices"]:
            tokens += (last.get("logprobs") or {}).get("content") or ()
            told = message["content"].strip()
            for name in message:
                message[name] += last["delta"].get(name) or ""
            # without the space that an answer may end with
            sent.grow(message["content"].strip()[len(told) :])
    raise httpx2.RemoteProtocolError("the stream broke off")


def _own_file(source: ImageSource) -> bytes | None:
    """The file of an image, if it is one that servers take."""
    data: Any = source
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        data = Path(path).read_bytes() if os.path.isfile(path) else embedded(path)
    if not isinstance(data, (bytes, bytearray)) or len(data) > MAX_UPLOAD_BYTES:
        return None
    try:
        open_checked(bytes(data), False, MAX_PIXELS, UPLOAD_FORMATS)
    except CofError:
        return None
    return bytes(data)


def _text(reply: Mapping[str, Any]) -> str:
    return (reply["choices"][0]["message"]["content"] or "").strip()


def _counts(reply: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM's own part of a reply says of an answer, without the end token that it counts."""
    choice = reply["choices"][0]
    end = choice.get("finish_reason") == "stop"
    told: dict[str, Any] = {"reasoning": (choice["message"].get("reasoning") or "").strip()}
    if usage := reply.get("usage"):
        told["num_tokens"] = usage["completion_tokens"] - end
        told["num_prompt_tokens"] = usage["prompt_tokens"]
    tokens = (choice.get("logprobs") or {}).get("content") or []
    logprobs = tuple(token["logprob"] for token in tokens[: len(tokens) - end])
    return {**told, "answer_confidence": confidence(Generation("", logprobs=logprobs))}


def _boxes(boxes: Sequence[Sequence[float]]) -> tuple[XYXY, ...]:
    return tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes)
