"""RemoteModel against a real HTTP server on this machine."""

from __future__ import annotations

import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from spiritlevel.chat import Chat, user
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import server as http
from spiritlevel.models.remote import RemoteModel, parse_remote_spec
from spiritlevel.models.reply import Reply

KEY = "sk-very/secret-key"


def answer_to(body: dict[str, Any]) -> str:
    # U+2028 and U+0085 end a line for str.splitlines, but not in a server-sent event.
    return f"echo:\u2028{body['messages'][-1]['content']}\x85 {body.get('seed')} 水准"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ChatServer

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def finish(self) -> None:
        with self.server.lock:
            self.server.connections -= 1
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        if self.server.models is None:
            self.send(404, b"nothing here")
        else:
            self.send(200, json.dumps({"data": [{"id": name} for name in self.server.models]}).encode())

    def do_POST(self) -> None:
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.paths.append(self.path)
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.active += 1
            server.peak = max(server.peak, server.active)
            number = len(server.bodies)
        try:
            server.behave(self, body, number)
        finally:
            with server.lock:
                server.active -= 1

    def send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def complete(self, body: dict[str, Any]) -> None:
        if body.get("stream"):
            self.stream(body)
            return
        choice = {"message": {"role": "assistant", "content": answer_to(body)}, "finish_reason": "stop"}
        self.send(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 7}}).encode())

    def stream(self, body: dict[str, Any], *, cut_after: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        events: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant"}}]}]
        events += [{"choices": [{"delta": {"content": character}}]} for character in answer_to(body)]
        events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
        events += [{"choices": [], "usage": {"completion_tokens": 7}}]
        lines = ": keep-alive\r\n\r\n" + "".join(
            f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\n" for event in events[:cut_after]
        )
        sent = (lines + ("" if cut_after else "data: [DONE]\n\n")).encode()
        for start in range(0, len(sent), 101):  # cuts through lines and through UTF-8 characters
            self.wfile.write(sent[start : start + 101])


Behaviour = Callable[[Handler, dict[str, Any], int], None]


class ChatServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a full queue costs a client a second

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.behave: Behaviour = lambda handler, body, number: handler.complete(body)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.models: list[str] | None = None
        self.active = self.peak = self.connections = 0

    def handle_error(self, *_: object) -> None:
        pass  # a client that hangs up is part of these tests

    def fail_first(self, count: int, status: int, **headers: str) -> None:
        def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
            if number <= count:
                handler.send(status, b"not now", **headers)
            else:
                handler.complete(body)

        self.behave = behave

    def always(self, status: int, content: str) -> None:
        self.behave = lambda handler, body, number: handler.send(status, content.encode())


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick_and_keyless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_FIRST_BACKOFF_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("SPIRITLEVEL_API_KEY", raising=False)


def chats(count: int) -> list[Chat]:
    return [[user(f"question {index}")] for index in range(count)]


def ask(server: ChatServer, **options: Any) -> Reply:
    with RemoteModel("m", server.url, **options) as model:
        return model.generate(chats(1), max_new_tokens=5)[0]


def failure(server: ChatServer, **options: Any) -> str:
    with pytest.raises(SpiritLevelError) as caught:
        ask(server, **options)
    assert caught.value.where == f"{server.url}/chat/completions"
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "model", "url"),
    [
        ("openai:m@http://127.0.0.1:8080/v1", "m", "http://127.0.0.1:8080/v1"),
        ("openai:org/m:8b@2024@https://api.example.com/v1/", "org/m:8b@2024", "https://api.example.com/v1"),
        ("openai:a@http://b@http://c/v1", "a@http://b", "http://c/v1"),
        ("openai:m@http://[::1]:8080", "m", "http://[::1]:8080"),
    ],
)
def test_spec_is_cut_at_the_last_address(spec: str, model: str, url: str) -> None:
    assert parse_remote_spec(spec) == (model, url)
    assert parse_remote_spec(RemoteModel(model, url).name) == (model, url)


@pytest.mark.parametrize(
    "spec",
    ["", "m", "openai:m", "openai:m@ftp://c", "openai:@http://c", "openai: @http://c", "m@http://c"]
    + [f"openai:m@http://{rest}" for rest in ("", "/v1", "c:x", "c:1/a b", "[::1", "c?key=1", "c#x", ":80")],
)
def test_malformed_spec_shows_an_example(spec: str) -> None:
    with pytest.raises(SpiritLevelError, match="openai:qwen3-4b@http://127"):
        parse_remote_spec(spec)


@pytest.mark.parametrize("url", ["http://ann:pass-word@c/v1", "https://c/v1?key=pass-word", "http://c#pass-word"])
def test_a_password_in_the_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(SpiritLevelError) as caught:
        parse_remote_spec(f"openai:m@{url}")
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize("option", [{"timeout": 0}, {"retries": -1}, {"concurrency": 0}])
def test_impossible_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least"):
        RemoteModel("m", "http://c", **option)


def test_request_and_reply(server: ChatServer) -> None:
    with RemoteModel("org/m", server.url + "/") as model:
        replies = model.generate(chats(1), max_new_tokens=5, temperature=0.7, top_p=0.9, seeds=[3])
    assert replies == [Reply("echo:\u2028question 0\x85 3 水准", 7, True)]
    assert server.paths == ["/v1/chat/completions"]
    [body] = server.bodies
    sampling = {"max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "seed": 3}
    assert body == {"model": "org/m", "messages": chats(1)[0]} | sampling


def test_no_seed_is_sent_unless_given(server: ChatServer) -> None:
    ask(server)
    assert "seed" not in server.bodies[0]


def test_no_chats_ask_nothing(server: ChatServer) -> None:
    with RemoteModel("m", server.url) as model:
        assert model.generate([], max_new_tokens=5) == []
    assert server.paths == []


def test_seeds_must_match_the_chats(server: ChatServer) -> None:
    with RemoteModel("m", server.url) as model, pytest.raises(ValueError, match="shorter"):
        model.generate(chats(2), max_new_tokens=5, seeds=[1])


def test_bare_reply_counts_no_tokens_and_is_not_finished(server: ChatServer) -> None:
    choice = '{"message": {"content": null}, "finish_reason": "length"}'
    server.always(200, f'{{"choices": [{choice}], "usage": null}}')
    assert ask(server) == Reply("", 0, False)


def test_results_keep_the_order_of_the_chats(server: ChatServer) -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        time.sleep(random.uniform(0, 0.05))
        handler.complete(body)

    server.behave = behave
    heard: dict[int, Reply] = {}
    with RemoteModel("m", server.url) as model:
        replies = model.generate(chats(24), max_new_tokens=5, seeds=range(100, 124), on_finish=heard.__setitem__)
    assert [reply.text for reply in replies] == [
        f"echo:\u2028question {index}\x85 {100 + index} 水准" for index in range(24)
    ]
    assert heard == dict(enumerate(replies))


def test_concurrency_is_reached_and_not_exceeded(server: ChatServer) -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        time.sleep(0.1)
        handler.complete(body)

    server.behave = behave
    with RemoteModel("m", server.url, concurrency=3) as model:
        model.generate(chats(12), max_new_tokens=5)
    assert server.peak == 3


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_passing_failures_are_retried(server: ChatServer, status: int) -> None:
    server.fail_first(2, status)
    assert ask(server, retries=2).tokens == 7
    assert len(server.bodies) == 3


def test_retries_end(server: ChatServer) -> None:
    server.always(503, "busy loading")
    assert "HTTP 503: busy loading" in failure(server, retries=2)
    assert len(server.bodies) == 3


@pytest.mark.parametrize("status", [400, 403, 422, 302])
def test_lasting_failures_are_not_retried(server: ChatServer, status: int) -> None:
    server.always(status, '{"error": "max_tokens is too large"}')
    assert f"HTTP {status}: " in (told := failure(server))
    assert "max_tokens is too large" in told
    assert len(server.bodies) == 1


def test_backoff_grows_and_is_jittered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_FIRST_BACKOFF_S", 0.5)
    ceilings: list[float] = []

    def lowest(low: float, high: float) -> float:
        ceilings.append(high)
        return low

    monkeypatch.setattr(random, "uniform", lowest)
    model = RemoteModel("m", "http://c", retries=2000)
    for attempt in (0, 1, 2, 3, 7, 1999):
        assert model._server._pause(httpx.ConnectError("no"), attempt) == 0
    assert ceilings == [0.5, 1, 2, 4, 60, 60]


def test_retry_after_is_honoured(server: ChatServer) -> None:
    server.fail_first(1, 429, Retry_After="1")
    start = time.monotonic()
    assert ask(server).tokens == 7
    assert 1 <= time.monotonic() - start < 3


def test_retry_after_reads_numbers_and_dates() -> None:
    assert http._seconds_asked("3") == 3
    assert http._seconds_asked("9" * 5000) == 60
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert 18 < http._seconds_asked(soon) <= 20
    for header in ("Wed, 21 Oct 2015 07:28:00 GMT", "", "soon", "-5", "nan", "inf", "²", "99 Jan 99999 0"):
        assert http._seconds_asked(header) == 0
    assert http._seconds_asked("Fri, 31 Dec 2100 23:59:59 GMT") == 60


def test_dropped_connection_is_retried_and_then_told(server: ChatServer) -> None:
    server.behave = lambda handler, body, number: handler.drop() if number < 3 else handler.complete(body)
    assert ask(server).tokens == 7
    server.behave = lambda handler, body, number: handler.drop()
    assert "the connection broke (" in failure(server, retries=1)
    assert len(server.bodies) == 3 + 2


def test_silence_is_a_timeout(server: ChatServer) -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        time.sleep(0.5)
        handler.complete(body)

    server.behave = behave
    start = time.monotonic()
    assert "no answer within 0.1 s" in failure(server, timeout=0.1, retries=1)
    assert time.monotonic() - start < 0.45
    assert len(server.bodies) == 2


def test_unreachable_server() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port, nobody answers
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with RemoteModel("m", url, retries=1) as model:
            for call in (
                lambda: model.generate(chats(2), max_new_tokens=5),
                lambda: list(model.stream(chats(1)[0], max_new_tokens=5)),
            ):
                with pytest.raises(SpiritLevelError) as caught:
                    call()
                assert str(caught.value).startswith(f"{url}/chat/completions: the server cannot be reached (")
                assert "Is it running? Check the URL." in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "<html>hello</html>", "[]", "null", '{"error": "overloaded"}', '{"choices": []}'),
        *('{"choices": [{"message": {}}]}', '{"choices": [{"message": {"content": ["a"]}}]}'),
    ],
)
def test_malformed_body_is_shown(server: ChatServer, content: str) -> None:
    server.always(200, content)
    assert f"expected a chat completion, found '{content}'" in failure(server)
    assert len(server.bodies) == 1


def test_bytes_that_are_no_text(server: ChatServer) -> None:
    server.behave = lambda handler, body, number: handler.send(200, b'{"\xff\xfe": 1}')
    assert "expected a chat completion" in failure(server)


def test_foreign_text_is_cut_and_stripped_of_control_characters(server: ChatServer) -> None:
    server.always(400, "bad\n\n\x1b[31mrequest " + "x" * 1000)
    told = failure(server)
    assert "bad [31mrequest xxx" in told
    assert "\x1b" not in told
    assert told.count("x") < 300


def test_unknown_model_lists_what_the_server_has(server: ChatServer) -> None:
    server.always(404, "no such model")
    server.models = ["qwen3-4b", "llama"]
    assert "The server has no model 'm'; it offers: qwen3-4b, llama" in failure(server)
    assert server.paths == ["/v1/chat/completions", "/v1/models"]
    server.models = None
    assert "often ends in /v1" in failure(server)


def test_no_key_sends_no_header(server: ChatServer) -> None:
    ask(server)
    assert server.keys == [None]


def test_key_is_sent_and_the_own_variable_wins(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "general\n")
    ask(server)
    monkeypatch.setenv("SPIRITLEVEL_API_KEY", KEY)
    ask(server)
    with RemoteModel("m", server.url) as model:
        list(model.stream(chats(1)[0], max_new_tokens=5))
    assert server.keys == ["Bearer general", f"Bearer {KEY}", f"Bearer {KEY}"]


def test_key_appears_nowhere(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    escaped = KEY.replace("/", r"\/")
    told = []
    for status in (200, 400, 401, 403, 404, 503):
        server.always(status, f'"{KEY}" {escaped} ' + "x" * 250 + KEY)
        server.models = [f"model-of-{KEY}"]
        told.append(failure(server, retries=0))
        with RemoteModel("m", server.url, retries=0) as model:
            told.append(repr(model) + repr(vars(model)))
            with pytest.raises(SpiritLevelError) as caught:
                list(model.stream(chats(1)[0], max_new_tokens=5))
        told.append(str(caught.value))
        assert caught.value.__cause__ is None
    with pytest.raises(SpiritLevelError) as caught:
        parse_remote_spec(KEY)
    shown = "\n".join([*told, str(caught.value), caplog.text])
    assert shown.count("[key]") > 12
    assert "sk-very" not in shown
    assert "secret-key" not in shown


def test_key_that_no_header_can_carry(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("two words", "line\nbreak", "clé"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(SpiritLevelError, match="a space or a non-ASCII character") as caught:
            ask(server)
        assert key not in str(caught.value)
    assert server.bodies == []


def test_refused_key(server: ChatServer) -> None:
    server.always(401, "who are you?")
    assert "HTTP 401: who are you?\n  → Set SPIRITLEVEL_API_KEY (or OPENAI_API_KEY)" in failure(server)
    assert len(server.bodies) == 1


def test_finished_replies_are_heard_before_the_failure_and_the_rest_is_cancelled(server: ChatServer) -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        index = int(body["messages"][0]["content"].split()[-1])
        if index == 3:
            time.sleep(0.2)
            handler.send(400, b"no")
        else:
            time.sleep(0 if index < 3 else 1)
            handler.complete(body)

    server.behave = behave
    heard: dict[int, Reply] = {}
    start = time.monotonic()
    with RemoteModel("m", server.url, concurrency=5) as model:
        with pytest.raises(SpiritLevelError, match="HTTP 400: no"):
            model.generate(chats(40), max_new_tokens=5, on_finish=heard.__setitem__)
        assert time.monotonic() - start < 0.9  # did not wait for the slow ones
        assert sorted(heard) == [0, 1, 2]
        assert all(reply.finished for reply in heard.values())
        asked = len(server.bodies)
        server.behave = lambda handler, body, number: handler.complete(body)
        assert len(model.generate(chats(2), max_new_tokens=5)) == 2  # usable afterwards
    assert asked < 10
    assert len(server.bodies) == asked + 2


def test_an_error_of_the_caller_comes_through(server: ChatServer) -> None:
    def on_finish(index: int, reply: Reply) -> None:
        raise OSError("disk full")

    with RemoteModel("m", server.url) as model, pytest.raises(OSError, match="disk full"):
        model.generate(chats(3), max_new_tokens=5, on_finish=on_finish)


def test_works_in_a_thread_and_leaves_no_socket(server: ChatServer) -> None:
    results: list[list[Reply]] = []
    with RemoteModel("m", server.url) as model:
        threads = [
            threading.Thread(target=lambda: results.append(model.generate(chats(10), max_new_tokens=5)))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        list(model.stream(chats(1)[0], max_new_tokens=5))
        next(model.stream(chats(1)[0], max_new_tokens=5))  # given up after the first piece
    assert [len(replies) for replies in results] == [10, 10, 10]
    deadline = time.monotonic() + 2
    while server.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.connections == 0


def test_a_proxy_for_the_internet_is_passed_by(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ask(server, retries=0).tokens == 7


def test_stream_says_what_generate_says(server: ChatServer) -> None:
    with RemoteModel("m", server.url) as model:
        [whole] = model.generate(chats(1), max_new_tokens=5, seeds=[3])
        pieces = list(model.stream(chats(1)[0], max_new_tokens=5, seed=3))
    assert "".join(pieces) == whole.text
    assert len(pieces) == len(whole.text)
    assert server.bodies[1] == server.bodies[0] | {"stream": True}


def test_stream_arrives_before_it_ends(server: ChatServer) -> None:
    go_on = threading.Event()

    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        for word in ("one", "two"):
            handler.wfile.write(b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % word.encode())
            assert go_on.wait(5)
        handler.wfile.write(b"data: [DONE]")

    server.behave = behave
    with RemoteModel("m", server.url) as model:
        pieces = model.stream(chats(1)[0], max_new_tokens=5)
        assert next(pieces) == "one"
        go_on.set()
        assert list(pieces) == ["two"]


def test_stream_is_retried_before_the_first_piece(server: ChatServer) -> None:
    server.fail_first(2, 503)
    with RemoteModel("m", server.url) as model:
        assert "".join(model.stream(chats(1)[0], max_new_tokens=5)) == answer_to(server.bodies[0])
    assert len(server.bodies) == 3


def test_stream_cut_short_is_told_and_not_retried(server: ChatServer) -> None:
    server.behave = lambda handler, body, number: handler.stream(body, cut_after=5)
    heard: list[str] = []
    with RemoteModel("m", server.url) as model, pytest.raises(SpiritLevelError, match="stream ended before"):
        heard.extend(model.stream(chats(1)[0], max_new_tokens=5))
    assert heard == list("echo")
    assert len(server.bodies) == 1


@pytest.mark.parametrize("event", ['{"error": "out of memory"}', "{", "", '{"choices": [{"delta": 3}]}'])
def test_malformed_event_is_shown(server: ChatServer, event: str) -> None:
    server.always(200, f"data: {event}\n\n")
    with RemoteModel("m", server.url) as model, pytest.raises(SpiritLevelError) as caught:
        list(model.stream(chats(1)[0], max_new_tokens=5))
    assert f"expected a chat completion, found '{event}'" in str(caught.value)
