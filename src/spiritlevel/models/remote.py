"""Replies from any OpenAI-compatible chat server, named `openai:MODEL@URL`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import KW_ONLY, dataclass
from typing import Any

import httpx

from spiritlevel.chat import Chat
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models.reply import Reply
from spiritlevel.models.server import MALFORMED, Body, Server, advise, checked_url, clean, unlike
from spiritlevel.store import digest_json

_EXAMPLE = "Write openai:MODEL@URL, for example openai:qwen3-4b@http://127.0.0.1:8080/v1"
_PATH, _WANTED = "/chat/completions", "a chat completion"


def parse_remote_spec(spec: str) -> tuple[str, str]:
    """`openai:MODEL@URL` -> (MODEL, URL); MODEL may itself contain `@`, `:` and `/`."""
    match = re.fullmatch(r"openai:(.*\S.*)@(https?://.*)", spec)  # greedy: cuts at the last @http(s)://
    if not match:
        raise SpiritLevelError("not the name of a remote model", where=clean(spec), remedy=_EXAMPLE)
    return match[1].strip(), checked_url(match[2], example=_EXAMPLE)


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
        self.base_url = checked_url(self.base_url, example=_EXAMPLE)
        self._server = Server(
            self.base_url, kind="a chat API", remedy=self._remedy,
            timeout=self.timeout, retries=self.retries, concurrency=self.concurrency,
        )  # fmt: skip

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
        self._server.close()

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
        return self._server.post_all(_PATH, bodies, _reply, wanted=_WANTED, on_finish=on_finish)

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
            with closing(self._server.open_stream(_PATH, body)) as response:
                yield from filter(None, _pieces(response))
        except httpx.HTTPError as error:
            raise self._server.explain(error) from None

    def _body(self, chat: Chat, seed: int | None, max_tokens: int, temperature: float, top_p: float) -> Body:
        body = {"model": self.model, "messages": chat, "max_tokens": max_tokens}
        return body | {"temperature": temperature, "top_p": top_p} | ({} if seed is None else {"seed": seed})

    def _remedy(self, response: httpx.Response) -> str:
        if response.status_code != 404:
            return advise(response)
        with suppress(httpx.HTTPError, *MALFORMED):
            listed = self._server.client.get(f"{self.base_url}/models", timeout=10.0).json()["data"]
            offered = ", ".join(clean(model["id"]) for model in listed[:20])
            return f"The server has no model {self.model!r}; it offers: {offered or 'none'}"
        return f"Check the model's name {self.model!r}, and the URL, which often ends in /v1."


def _reply(answer: Any) -> Reply:
    choice = answer["choices"][0]
    text = choice["message"]["content"] or ""  # null where the model only thought or called a tool
    tokens = int((answer.get("usage") or {}).get("completion_tokens") or 0)
    return Reply("" + text, tokens, choice.get("finish_reason") == "stop")


def _pieces(response: httpx.Response) -> Iterator[str]:
    ended = False
    for data in _events(response.iter_bytes()):
        if data == b"[DONE]":
            return
        try:
            choices = json.loads(data)["choices"]
            choice = choices[0] if choices else {"delta": {}}  # none in the chunk that carries the usage
            piece = "" + (choice["delta"].get("content") or "")
            ended = ended or choice.get("finish_reason") is not None
        except MALFORMED:
            raise unlike(_WANTED, data.decode(errors="replace"), response.request) from None
        yield piece
    if not ended:
        raise httpx.RemoteProtocolError("the stream ended before the reply", request=response.request)


def _events(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The data of server-sent events, cut as bytes: httpx's iter_lines would also cut at U+2028."""
    rest = b""
    for chunk in itertools.chain(chunks, (b"\n",)):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line[5:].strip() for line in lines if line.startswith(b"data:"))
