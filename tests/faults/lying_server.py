"""A server between a node and an honest one: it passes requests on, and lies where it is told to.

What is told may be anything that fits into a socket: a lie gets the honest answer and sends what it
likes, head included. So a lie works for every route, those that come later too, and all that is not
lied about is as an honest server says it.
"""

from __future__ import annotations

import http.client
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

REASON = "Whatever"
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass(frozen=True)
class Asked:
    """A request: `text` is "METHOD /path?query"."""

    text: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What the honest server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        return self.headers.get("content-type", "application/octet-stream")

    def head(self, size: int | None, status: str = "", **more: str) -> bytes:
        """A head with the honest headers and a length of our choice (None: until the end)."""
        headers = dict(self.headers) | {key.replace("_", "-"): value for key, value in more.items()}
        lines = [f"HTTP/1.1 {status or f'{self.status} {REASON}'}"]
        lines += [f"{key}: {value}" for key, value in headers.items()]
        lines += ["connection: close"] + ([] if size is None else [f"content-length: {size}"])
        return "\r\n".join([*lines, "", ""]).encode()


class Line:
    """The way to the node."""

    def __init__(self, sock: socket.socket, stop: threading.Event) -> None:
        self._sock = sock
        self._stop = stop

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self._sock.sendall(part)

    def wait(self, seconds: float) -> None:
        """Say nothing for a while; an end of the test ends it."""
        if self._stop.wait(seconds):
            raise ConnectionAbortedError

    def reset(self) -> None:
        """Close so that the node gets a reset, not an end."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


Tell = Callable[[Line, Asked, Answer], None]


@dataclass
class Lie:
    """Answers whose request matches `route` are told by `tell`, the first `times` of them."""

    route: str
    tell: Tell
    times: int = 1 << 30
    told: int = field(default=0, init=False)

    def takes(self, asked: Asked) -> bool:
        return self.told < self.times and re.search(self.route, asked.text) is not None


class LyingServer:
    """Passes on to `upstream` (a URL); `lies` are tried in order. A context."""

    def __init__(self, upstream: str, lies: Sequence[Lie] = ()) -> None:
        self.lies = list(lies)
        self.asked: list[str] = []
        self._upstream = urlsplit(upstream).netloc
        self._stop = threading.Event()
        self._lock = threading.Lock()
        lying = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                asked = read_request(self.rfile.readline, self.rfile.read)
                if asked is not None:
                    with suppress(OSError):  # the node had enough
                        lying._answer(asked, Line(self.connection, lying._stop))

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            block_on_close = False
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                """A reset connection is what some lies are."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    def _answer(self, asked: Asked, line: Line) -> None:
        with self._lock:
            self.asked.append(asked.text)
            lie = next((one for one in self.lies if one.takes(asked)), None)
            if lie is not None:
                lie.told += 1
        answer = self._pass_on(asked)
        if lie is not None:
            lie.tell(line, asked, answer)
        else:
            line.send(answer.head(len(answer.body)), answer.body)

    def _pass_on(self, asked: Asked) -> Answer:
        method, _, target = asked.text.partition(" ")
        headers = {key: value for key, value in asked.headers.items() if key not in HOP_HEADERS}
        connection = http.client.HTTPConnection(self._upstream, timeout=30)
        try:
            connection.request(method, target, asked.body or None, headers)
            response = connection.getresponse()
            body = response.read()
            kept = {key.lower(): value for key, value in response.getheaders()}
        finally:
            connection.close()
        kept = {key: value for key, value in kept.items() if key not in HOP_HEADERS}
        return Answer(response.status, kept, body)

    def close(self) -> None:
        self._stop.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> LyingServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()


def read_request(read_line: Callable[[], bytes], read: Callable[[int], bytes]) -> Asked | None:
    """One request; None when the node closed instead."""
    first = read_line().decode("latin-1").split()
    headers: dict[str, str] = {}
    while line := read_line().strip():
        key, _, value = line.decode("latin-1").partition(":")
        headers[key.lower()] = value.strip()
    if len(first) < 2:
        return None
    return Asked(f"{first[0]} {first[1]}", headers, read(int(headers.get("content-length", 0))))


# --- lies ------------------------------------------------------------------------------------


def say(status: int, body: bytes = b"", kind: str = "text/plain", **headers: str) -> Tell:
    """This status and body instead."""

    def tell(line: Line, _: Asked, __: Answer) -> None:
        answer = Answer(status, {"content-type": kind}, body)
        line.send(answer.head(len(body), **headers), body)

    return tell


def with_body(change: Callable[[bytes], bytes]) -> Tell:
    """The honest head, of the right length, before a changed body."""

    def tell(line: Line, _: Asked, answer: Answer) -> None:
        body = change(answer.body)
        line.send(answer.head(len(body)), body)

    return tell


def with_length(length: Callable[[int], str]) -> Tell:
    """The honest body behind a wrong content-length; then the line is closed."""

    def tell(line: Line, _: Asked, answer: Answer) -> None:
        head = answer.head(None, content_length=length(len(answer.body)))
        line.send(head, answer.body)

    return tell


def raw(*parts: bytes, times: int = 1, behind: bool = False) -> Tell:
    """Bytes that need be no HTTP; with `behind` the honest answer follows."""

    def tell(line: Line, _: Asked, answer: Answer) -> None:
        for _turn in range(times):
            line.send(*parts)
        if behind:
            line.send(answer.head(len(answer.body)), answer.body)

    return tell


def cut(share: float, *, reset: bool = False) -> Tell:
    """The honest answer, broken off after this share of its body."""

    def tell(line: Line, _: Asked, answer: Answer) -> None:
        line.send(answer.head(len(answer.body)), answer.body[: int(share * len(answer.body))])
        if reset:
            line.reset()

    return tell


def endless(line: Line, _: Asked, answer: Answer) -> None:
    line.send(answer.head(None), answer.body)
    while True:
        line.send(bytes(1 << 16))


def endless_chunked(line: Line, _: Asked, answer: Answer) -> None:
    line.send(answer.head(None, transfer_encoding="chunked"))
    while True:
        line.send(b"10000\r\n", bytes(1 << 16), b"\r\n")


def drip(line: Line, _: Asked, answer: Answer) -> None:
    """A byte now and then: the answer would take hours."""
    line.send(answer.head(len(answer.body) + (1 << 20)))
    for byte in answer.body + bytes(1 << 20):
        line.send(bytes([byte]))
        line.wait(0.01)


def silence(line: Line, _: Asked, __: Answer) -> None:
    line.wait(60)


def slow_head(line: Line, _: Asked, __: Answer) -> None:
    """A head that never ends, a line at a time."""
    line.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        line.send(b"x: y\r\n")
        line.wait(0.01)


def redirect(to: str) -> Tell:
    def tell(line: Line, asked: Asked, answer: Answer) -> None:
        target = to + asked.text.partition(" ")[2]
        line.send(answer.head(0, "307 Elsewhere", location=target))

    return tell
