"""Replies from any OpenAI-compatible chat server, named `openai:MODEL@URL`."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import KW_ONLY, dataclass
from email.utils import parsedate_to_datetime as http_date
from typing import Any

import httpx

from spiritlevel.chat import Chat
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models.reply import Reply
from spiritlevel.store import digest_json

_EXAMPLE = "Write openai:MODEL@URL, for example openai:qwen3-4b@http://127.0.0.1:8080/v1"
_SET_KEY = "Set SPIRITLEVEL_API_KEY (or OPENAI_API_KEY) to a key that this server accepts."
_READ_LOG = "Look into the server's log for the cause, or try again later."
_PASSING = {408, 409, 429, *range(500, 600)}
_REMEDIES = dict.fromkeys(_PASSING, _READ_LOG) | {401: _SET_KEY, 429: "Lower the concurrency, or wait."}
_FIRST_BACKOFF_S, _LONGEST_WAIT_S = 0.5, 60.0
_PROXIES = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))  # none to this machine
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError)  # what reading foreign JSON can raise
_Body = dict[str, Any]


def parse_remote_spec(spec: str) -> tuple[str, str]:
    """`openai:MODEL@URL` -> (MODEL, URL); MODEL may itself contain `@`, `:` and `/`."""
    match = re.fullmatch(r"openai:(.*\S.*)@(https?://.*)", spec)  # greedy: cuts at the last @http(s)://
    if not match:
        raise SpiritLevelError("not the name of a remote model", where=_clean(spec), remedy=_EXAMPLE)
    return match[1].strip(), _checked_url(match[2])


@dataclass
class RemoteModel(AbstractContextManager["RemoteModel"]):
    """A chat model behind HTTP; `timeout` is the longest silence of the server, in seconds."""

    model: str
    base_url: str
    _: KW_ONLY
    timeout: float = 60.0
    retries: int = 4
    concurrency: int = 8

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.retries < 0 or self.concurrency < 1:
            raise ValueError("timeout must be above 0, retries at least 0, concurrency at least 1")
        self.base_url = _checked_url(self.base_url)
        self._url = f"{self.base_url}/chat/completions"
        self._options: dict[str, Any] = {"auth": _with_key, "limits": httpx.Limits(), "mounts": _PROXIES}
        self._options["verify"] = httpx.create_ssl_context()  # shared, since it takes 20 ms to make
        self._options["timeout"] = httpx.Timeout(self.timeout, connect=min(self.timeout, 10.0))
        self._client = httpx.Client(**self._options)  # for streams; `generate` opens and closes its own

    @property
    def name(self) -> str:
        return f"openai:{self.model}@{self.base_url}"

    @property
    def digest(self) -> str:
        """Of its name: what the server really runs can't be seen from here."""
        return digest_json(self.name)

    def plan(self, chats: Sequence[Chat]) -> list[list[int]]:
        """Indices in batches that keep all connections busy; each reply is reported as it arrives."""
        size = 4 * self.concurrency
        return [list(range(start, min(start + size, len(chats)))) for start in range(0, len(chats), size)]

    def close(self) -> None:
        self._client.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        chats: Sequence[Chat],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
        on_finish: Callable[[int, Reply], None] | None = None,
    ) -> list[Reply]:
        """One reply a chat, in order; `on_finish` hears of each as it arrives. A failure cancels the rest."""
        pairs = zip(chats, [None] * len(chats) if seeds is None else seeds, strict=True)
        bodies = [self._body(chat, seed, max_new_tokens, temperature, top_p) for chat, seed in pairs]
        try:
            return asyncio.run(self._generate(bodies, on_finish or (lambda *_: None)))
        except BaseExceptionGroup as failures:
            raise self._explain(failures.exceptions[0]) from None

    def stream(
        self,
        chat: Chat,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The reply piece by piece. Retries happen before the first piece, never after."""
        body = self._body(chat, seed, max_new_tokens, temperature, top_p) | {"stream": True}
        try:
            with closing(self._open(body)) as response:
                yield from filter(None, self._pieces(response))
        except httpx.HTTPError as error:
            raise self._explain(error) from None

    def _body(self, chat: Chat, seed: int | None, max_tokens: int, temperature: float, top_p: float) -> _Body:
        body = {"model": self.model, "messages": chat, "max_tokens": max_tokens}
        return body | {"temperature": temperature, "top_p": top_p} | ({} if seed is None else {"seed": seed})

    async def _generate(self, bodies: list[_Body], on_finish: Callable[[int, Reply], None]) -> list[Reply]:
        slots = asyncio.Semaphore(self.concurrency)

        async def one(index: int, body: _Body) -> Reply:
            async with slots:  # held while backing off, so that a busy server is left alone
                reply = self._reply(await self._ask(client, body))
            on_finish(index, reply)
            return reply

        async with httpx.AsyncClient(**self._options) as client, asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index, body)) for index, body in enumerate(bodies)]
        return [task.result() for task in tasks]

    async def _ask(self, client: httpx.AsyncClient, body: _Body, attempt: int = 0) -> httpx.Response:
        try:
            return (await client.post(self._url, json=body)).raise_for_status()
        except httpx.HTTPError as error:
            pause = self._pause(error, attempt)
        await asyncio.sleep(pause)
        return await self._ask(client, body, attempt + 1)

    def _open(self, body: _Body, attempt: int = 0) -> httpx.Response:
        try:
            answer = self._client.send(self._client.build_request("POST", self._url, json=body), stream=True)
            if not answer.is_success:
                answer.read()
            return answer.raise_for_status()
        except httpx.HTTPError as error:
            pause = self._pause(error, attempt)
        time.sleep(pause)
        return self._open(body, attempt + 1)

    def _pause(self, error: httpx.HTTPError, attempt: int) -> float:
        """Seconds until the next try: full jitter, no less than Retry-After. Raises a final `error`."""
        response = error.response if isinstance(error, httpx.HTTPStatusError) else None
        passing = response.status_code in _PASSING if response else isinstance(error, httpx.TransportError)
        if not passing or attempt >= self.retries:
            raise error
        jitter = random.uniform(0, min(_FIRST_BACKOFF_S * 2 ** min(attempt, 10), _LONGEST_WAIT_S))
        return max(jitter, _seconds_asked(response.headers.get("retry-after", "") if response else ""))

    def _reply(self, response: httpx.Response) -> Reply:
        try:
            answer = response.json()
            choice = answer["choices"][0]
            text = choice["message"]["content"] or ""  # null where the model only thought or called a tool
            tokens = int((answer.get("usage") or {}).get("completion_tokens") or 0)
            return Reply("" + text, tokens, choice.get("finish_reason") == "stop")
        except _MALFORMED:
            raise httpx.DecodingError(f"found '{response.text}'") from None

    def _pieces(self, response: httpx.Response) -> Iterator[str]:
        ended = False
        for data in _events(response.iter_bytes()):
            if data == b"[DONE]":
                return
            try:
                choices = json.loads(data)["choices"]
                choice = choices[0] if choices else {"delta": {}}  # none in the chunk that carries the usage
                piece = "" + (choice["delta"].get("content") or "")
                ended = ended or choice.get("finish_reason") is not None
            except _MALFORMED:
                raise httpx.DecodingError(f"found '{data.decode(errors='replace')}'") from None
            yield piece
        if not ended:
            raise httpx.RemoteProtocolError("the stream ended before the reply")

    def _explain(self, error: BaseException) -> BaseException:
        if not isinstance(error, httpx.HTTPError):
            return error
        what = _clean(str(error)) or type(error).__name__
        if isinstance(error, httpx.HTTPStatusError):
            status, body = error.response.status_code, _clean(error.response.text) or "an empty body"
            problem, remedy = f"HTTP {status}: {body}", self._remedy(status)
        elif isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            problem, remedy = f"the server cannot be reached ({what})", "Is it running? Check the URL."
        elif isinstance(error, httpx.TimeoutException):
            problem, remedy = f"no answer within {self.timeout:g} s", "Lower concurrency or raise timeout."
        elif isinstance(error, httpx.DecodingError):
            problem, remedy = f"expected a chat completion, {what}", "Is the URL that of a chat API?"
        else:
            problem, remedy = f"the connection broke ({what})", _READ_LOG
        return SpiritLevelError(problem, where=self._url, remedy=remedy)

    def _remedy(self, status: int) -> str:
        if status != 404:
            return _REMEDIES.get(status, "Check that the server allows this model and these settings.")
        with suppress(httpx.HTTPError, *_MALFORMED):
            listed = self._client.get(f"{self.base_url}/models", timeout=10.0).json()["data"]
            offered = ", ".join(_clean(model["id"]) for model in listed[:20])
            return f"The server has no model {self.model!r}; it offers: {offered or 'none'}"
        return f"Check the model's name {self.model!r}, and the URL, which often ends in /v1."


def _checked_url(url: str) -> str:
    with suppress(httpx.InvalidURL):
        if re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url) and httpx.URL(url).host:
            return url.rstrip("/")
    shown = _clean(re.sub(r"(?<=//)[^/?#]*@|[?#].*", "…", url))  # a password may stand there
    raise SpiritLevelError("not a plain address (no user name, ? or #)", where=shown, remedy=_EXAMPLE)


def _key() -> str:
    key = (os.environ.get("SPIRITLEVEL_API_KEY") or os.environ.get("OPENAI_API_KEY") or "").strip()
    if not re.fullmatch("[!-~]*", key):  # httpx would quote the key in its own error
        raise SpiritLevelError("the API key holds a space or a non-ASCII character", remedy=_SET_KEY)
    return key


def _with_key(request: httpx.Request) -> httpx.Request:
    if key := _key():
        request.headers["Authorization"] = f"Bearer {key}"
    return request


def _clean(text: str) -> str:
    """The start of a foreign text on one line, without control characters and without the key."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    for form in {_key(), _key().replace("/", r"\/")} - {""}:  # some JSON writers escape the slash
        line = line.replace(form, "[key]")
    return line[:300]


def _seconds_asked(header: str) -> float:
    """Retry-After (RFC 9110 §10.2.3), a number or a date; 0 if unreadable, at most a minute."""
    with suppress(ValueError, TypeError, OverflowError):
        seconds = float(header) if header.isdecimal() else http_date(header).timestamp() - time.time()
        return max(0.0, min(seconds, _LONGEST_WAIT_S))
    return 0.0


def _events(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The data of server-sent events, cut as bytes: httpx's iter_lines would also cut at U+2028."""
    rest = b""
    for chunk in itertools.chain(chunks, (b"\n",)):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line[5:].strip() for line in lines if line.startswith(b"data:"))
