"""Another program's server: JSON over HTTP with retries, and its failures in words."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from email.utils import parsedate_to_datetime as http_date
from typing import Any, TypeVar

import httpx

from spiritlevel.errors import SpiritLevelError

MALFORMED = (ValueError, LookupError, TypeError, AttributeError)  # what reading foreign JSON can raise
_SET_KEY = "Set SPIRITLEVEL_API_KEY (or OPENAI_API_KEY) to a key that this server accepts."
_READ_LOG = "Look into the server's log for the cause, or try again later."
_PASSING = {408, 409, 429, *range(500, 600)}
_REMEDIES = dict.fromkeys(_PASSING, _READ_LOG) | {401: _SET_KEY, 429: "Lower the concurrency, or wait."}
_FIRST_BACKOFF_S, _LONGEST_WAIT_S = 0.5, 60.0
_PROXIES = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))  # none to this machine

Body = dict[str, Any]
Answer = TypeVar("Answer")


def advise(response: httpx.Response) -> str:
    """What to do about an answer that is a failure, for want of better advice."""
    return _REMEDIES.get(response.status_code, "Check that the server allows this model and these settings.")


@dataclass
class Server:
    """Its address, and how it is asked. timeout: its longest silence, in seconds; concurrency: of `post_all`.

    kind: what it is, as in "Is the URL that of a chat API?"; remedy: the advice on an answer that is a failure.
    """

    url: str
    _: KW_ONLY
    kind: str
    timeout: float
    retries: int
    concurrency: int
    remedy: Callable[[httpx.Response], str] = advise

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.retries < 0 or self.concurrency < 1:
            raise ValueError("timeout must be above 0, retries at least 0, concurrency at least 1")
        self._options: dict[str, Any] = {"auth": _with_key, "limits": httpx.Limits(), "mounts": _PROXIES}
        self._options["verify"] = httpx.create_ssl_context()  # shared, since it takes 20 ms to make
        self._options["timeout"] = httpx.Timeout(self.timeout, connect=min(self.timeout, 10.0))
        self.client = httpx.Client(**self._options)  # for single requests; `post_all` opens and closes its own

    def close(self) -> None:
        self.client.close()

    def get(self, path: str, read: Callable[[Any], Answer], *, wanted: str) -> Answer:
        """What `read` makes of the JSON at `path`. wanted: what that is, for the error if it is something else."""
        try:
            return _read(self._retrying("GET", path), read, wanted)
        except httpx.HTTPError as error:
            raise self.explain(error) from None

    def post(self, path: str, body: Body) -> None:
        """For what is answered by a word of agreement."""
        try:
            self._retrying("POST", path, body)
        except httpx.HTTPError as error:
            raise self.explain(error) from None

    def post_all(
        self,
        path: str,
        bodies: Sequence[Body],
        read: Callable[[Any], Answer],
        *,
        wanted: str,
        on_finish: Callable[[int, Answer], None] | None = None,
    ) -> list[Answer]:
        """What `read` makes of the answer to each body, in order; `on_finish` hears of each as it arrives. A failure
        cancels the rest."""

        async def one(client: httpx.AsyncClient, slots: asyncio.Semaphore, index: int, body: Body) -> Answer:
            async with slots:  # held while backing off, so that a busy server is left alone
                answer = _read(await self._send(client, path, body), read, wanted)
            if on_finish is not None:
                on_finish(index, answer)
            return answer

        async def all_of_them() -> list[Answer]:
            slots = asyncio.Semaphore(self.concurrency)
            async with httpx.AsyncClient(**self._options) as client, asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(client, slots, *numbered)) for numbered in enumerate(bodies)]
            return [task.result() for task in tasks]

        try:
            return asyncio.run(all_of_them())
        except BaseExceptionGroup as failures:
            raise self.explain(failures.exceptions[0]) from None

    def open_stream(self, path: str, body: Body) -> httpx.Response:
        """The answer, still to be read and closed by the caller, whose `httpx.HTTPError`s are for `explain`."""
        return self._retrying("POST", path, body, stream=True)

    def explain(self, error: BaseException) -> BaseException:
        """What went wrong with a request, as the user is told; any other error as it is."""
        if not isinstance(error, httpx.HTTPError):
            return error
        what = clean(str(error)) or type(error).__name__
        if isinstance(error, httpx.HTTPStatusError):
            status, body = error.response.status_code, clean(error.response.text) or "an empty body"
            problem, remedy = f"HTTP {status}: {body}", self.remedy(error.response)
        elif isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            problem, remedy = f"the server cannot be reached ({what})", "Is it running? Check the URL."
        elif isinstance(error, httpx.TimeoutException):
            problem, remedy = f"no answer within {self.timeout:g} s", "Lower concurrency or raise timeout."
        elif isinstance(error, httpx.DecodingError):
            problem, remedy = what, f"Is the URL that of {self.kind}?"
        else:
            problem, remedy = f"the connection broke ({what})", _READ_LOG
        return SpiritLevelError(problem, where=str(error.request.url), remedy=remedy)

    def _retrying(self, method: str, path: str, body: Body | None = None, *, stream: bool = False) -> httpx.Response:
        attempt = 0
        while True:
            try:
                request = self.client.build_request(method, self.url + path, json=body)
                answer = self.client.send(request, stream=stream)
                if not answer.is_success:
                    answer.read()
                return answer.raise_for_status()
            except httpx.HTTPError as error:
                pause = self._pause(error, attempt)
            time.sleep(pause)
            attempt += 1

    async def _send(self, client: httpx.AsyncClient, path: str, body: Body) -> httpx.Response:
        attempt = 0
        while True:
            try:
                return (await client.post(self.url + path, json=body)).raise_for_status()
            except httpx.HTTPError as error:
                pause = self._pause(error, attempt)
            await asyncio.sleep(pause)
            attempt += 1

    def _pause(self, error: httpx.HTTPError, attempt: int) -> float:
        """Seconds until the next try: full jitter, no less than Retry-After. Raises a final `error`."""
        response = error.response if isinstance(error, httpx.HTTPStatusError) else None
        passing = response.status_code in _PASSING if response else isinstance(error, httpx.TransportError)
        if not passing or attempt >= self.retries:
            raise error
        jitter = random.uniform(0, min(_FIRST_BACKOFF_S * 2 ** min(attempt, 10), _LONGEST_WAIT_S))
        return max(jitter, _seconds_asked(response.headers.get("retry-after", "") if response else ""))


def checked_url(url: str, *, example: str) -> str:
    """The address without a slash at its end. Raises SpiritLevelError that shows `example` if it is none."""
    with suppress(httpx.InvalidURL):
        if re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url) and httpx.URL(url).host:
            return url.rstrip("/")
    shown = clean(re.sub(r"(?<=//)[^/?#]*@|[?#].*", "…", url))  # a password may stand there
    raise SpiritLevelError("not a plain address (no user name, ? or #)", where=shown, remedy=example)


def clean(text: str) -> str:
    """The start of a foreign text on one line, without control characters and without the key."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    for form in {_key(), _key().replace("/", r"\/")} - {""}:  # some JSON writers escape the slash
        line = line.replace(form, "[key]")
    return line[:300]


def unlike(wanted: str, found: str, request: httpx.Request) -> httpx.DecodingError:
    return httpx.DecodingError(f"expected {wanted}, found '{clean(found)}'", request=request)


def _read(response: httpx.Response, read: Callable[[Any], Answer], wanted: str) -> Answer:
    try:
        return read(response.json())
    except MALFORMED:
        raise unlike(wanted, response.text, response.request) from None


def _key() -> str:
    key = (os.environ.get("SPIRITLEVEL_API_KEY") or os.environ.get("OPENAI_API_KEY") or "").strip()
    if not re.fullmatch("[!-~]*", key):  # httpx would quote the key in its own error
        raise SpiritLevelError("the API key holds a space or a non-ASCII character", remedy=_SET_KEY)
    return key


def _with_key(request: httpx.Request) -> httpx.Request:
    if key := _key():
        request.headers["Authorization"] = f"Bearer {key}"
    return request


def _seconds_asked(header: str) -> float:
    """Retry-After (RFC 9110 §10.2.3), a number or a date; 0 if unreadable, at most a minute."""
    with suppress(ValueError, TypeError, OverflowError):
        seconds = float(header) if header.isdecimal() else http_date(header).timestamp() - time.time()
        return max(0.0, min(seconds, _LONGEST_WAIT_S))
    return 0.0
