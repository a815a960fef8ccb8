"""Answers that are ready: sent by the bytes of the request, and never when they are out of date."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from memory_source import MemorySource
from serving import Served, connect, get, serving

from layerkit.digest import Digest
from layerkit.edges.http.ready import MAX_TURN_SECONDS, Ready, ReadyAnswer


@pytest.fixture
def source() -> MemorySource:
    source = MemorySource()
    source.tag("a", "v1", b'{"v":1}')
    source.tag("a", "v2", b'{"v":2}')
    return source


@pytest.fixture
def served(source: MemorySource) -> Iterator[Served]:
    with serving(source) as found:
        yield found


@pytest.fixture
def old(source: MemorySource) -> Digest:
    old = source.tag("a", "v1", b'{"v":1}')
    source.update("a", "v2", old, b"0123456789")
    return old


def ask(sock: socket.socket, path: str, more: str = "") -> tuple[str, bytes]:
    """Status and body of one answer on a connection that stays."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n{more}\r\n".encode())
    return receive(sock)


def receive(sock: socket.socket) -> tuple[str, bytes]:
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += sock.recv(65536)
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    size = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
    while len(body) < size:
        body += sock.recv(65536)
    assert any(line.startswith("date: ") for line in lines)
    return lines[0].split()[1], body


def test_the_same_request_is_asked_of_the_source_once(
    served: Served, source: MemorySource, old: Digest
) -> None:
    with connect(served) as sock:
        found = [ask(sock, f"/v1/a/updates/v2?from={old}") for _ in range(5)]
    assert found == [("200", b"0123456789")] * 5
    assert source.calls.count("read_update") == 1
    assert served.metric("layerkit_cache_requests_total", what="answer", result="hit") == 4
    assert served.metric("layerkit_http_requests_total", endpoint="updates", status="200") == 5
    assert served.metric("layerkit_layer_sent_bytes_total", role="code") == 50
    assert served.metric("layerkit_layer_saved_bytes_total", role="base") == 5000


def test_what_was_published_since_is_sent(
    served: Served, source: MemorySource, old: Digest
) -> None:
    path = f"/v1/a/updates/v2?from={old}"
    with connect(served) as sock:
        first = [ask(sock, path)[1] for _ in range(3)]
        source.update("a", "v2", old, b"new")
        assert (first, ask(sock, path)[1]) == ([b"0123456789"] * 3, b"new")


def test_an_update_that_was_only_quick_is_not_kept(
    served: Served, source: MemorySource, old: Digest
) -> None:
    source.kept = False
    with connect(served) as sock:
        for _ in range(3):
            ask(sock, f"/v1/a/updates/v2?from={old}")
    assert source.calls.count("read_update") == 3


@pytest.mark.parametrize("size", [1, 20_000, 200_000])
def test_all_sizes_arrive_whole(served: Served, source: MemorySource, size: int) -> None:
    old = source.tag("a", "v1", b'{"v":1}')
    data = bytes(range(251)) * (size // 251) + b"x" * (size % 251)
    source.update("a", "v2", old, data)
    with connect(served) as sock:
        assert [ask(sock, f"/v1/a/updates/v2?from={old}")[1] for _ in range(4)] == [data] * 4


def test_a_reader_who_pauses_gets_all(served: Served, source: MemorySource) -> None:
    old = source.tag("a", "v1", b'{"v":1}')
    data = bytes(range(250)) * 1000
    source.update("a", "v2", old, data)
    path = f"/v1/a/updates/v2?from={old}"
    with connect(served) as sock:
        ask(sock, path)
        request = f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        for _ in range(40):  # 10 MB: more than the kernel takes
            sock.sendall(request)
            assert receive(sock) == ("200", data)
        sock.sendall(request * 20)
        found = b""
        while found.count(data[:2500] + data[2500:]) < 20:
            found += sock.recv(1 << 20)


def test_requests_on_each_others_heels_are_answered_in_order(
    served: Served, source: MemorySource, old: Digest
) -> None:
    request = f"GET /v1/a/updates/v2?from={old} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    tags = b"GET /v2/a/tags/list HTTP/1.1\r\nhost: x\r\n\r\n"
    with connect(served) as sock:
        sock.sendall(request)
        receive(sock)
        sock.sendall(tags + request + tags[:10])
        sock.sendall(tags[10:])
        raw = b""
        while raw.count(b'"tags":') < 2:
            raw += sock.recv(65536)
    assert raw.index(b'"tags":') < raw.index(b"0123456789") < raw.rindex(b'"tags":')


def test_a_request_with_a_body_is_not_taken_for_one_without(served: Served, old: Digest) -> None:
    """The head alone looks like a whole request; its body must not be read as the next one."""
    path = f"/v1/a/updates/v2?from={old}"
    with connect(served) as sock:
        for _ in range(3):
            sock.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n".encode())
            sock.sendall(b"xxxxx")
            assert receive(sock)[0] == "200"
        assert ask(sock, path)[0] == "200"


def test_a_connection_that_is_to_be_closed_is(served: Served, old: Digest) -> None:
    path = f"/v1/a/updates/v2?from={old}"
    for _ in range(3):
        with connect(served) as sock:
            assert ask(sock, path, "connection: close\r\n")[0] == "200"
            assert sock.recv(1) == b""


def test_parts_are_kept_by_what_was_asked(served: Served, old: Digest) -> None:
    path = f"/v1/a/updates/v2?from={old}"
    with connect(served) as sock:
        found = [
            ask(sock, path, more)
            for _ in range(3)
            for more in ("range: bytes=0-3\r\n", "range: bytes=4-\r\n", "")
        ]
    assert found == [("206", b"0123"), ("206", b"456789"), ("200", b"0123456789")] * 3


def test_errors_are_not_kept(served: Served, source: MemorySource) -> None:
    with connect(served) as sock:
        missing = [ask(sock, "/v2/a/manifests/v9")[0] for _ in range(2)]
        source.tag("a", "v9")
        assert (missing, ask(sock, "/v2/a/manifests/v9")[0]) == (["404"] * 2, "200")


def test_files_of_ready_answers_are_bounded_and_closed(
    monkeypatch: pytest.MonkeyPatch, source: MemorySource
) -> None:
    monkeypatch.setattr("layerkit.edges.http.ready.MAX_FILE_COUNT", 3)
    digests = [source.blob("a", bytes([at]) * 20_000) for at in range(6)]
    opened = len(list(Path("/proc/self/fd").iterdir()))
    with serving(source) as served, connect(served) as sock:
        for digest in digests * 3:
            assert len(ask(sock, f"/v2/a/blobs/{digest}")[1]) == 20_000
        files = [link for link in Path("/proc/self/fd").iterdir() if _is_answer(link)]
        assert len(files) == 3
    assert not [link for link in Path("/proc/self/fd").iterdir() if _is_answer(link)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= opened + 2


def _is_answer(link: Path) -> bool:
    try:
        return "layerkit-answer" in str(link.readlink())
    except OSError:
        return False


def test_memory_of_ready_answers_is_bounded(
    monkeypatch: pytest.MonkeyPatch, source: MemorySource
) -> None:
    monkeypatch.setattr("layerkit.edges.http.ready.MAX_SIZE", 100_000)
    digests = [source.blob("a", bytes([at]) * 20_000) for at in range(10)]
    with serving(source) as served, connect(served) as sock:
        for digest in digests:
            ask(sock, f"/v2/a/blobs/{digest}")
        assert len(served.app.ready) == 4
        assert get(served, f"/v2/a/blobs/{digests[0]}").data == bytes([0]) * 20_000


# --- how source and tokens stand -----------------------------------------------------------------


class Standing:
    """A version that counts how often it is asked for, and turns of an event loop."""

    def __init__(self) -> None:
        self.version, self.count = 1, 0
        self.soon: list[Callable[[], None]] = []
        self.ready = Ready(self.ask)
        self.ready.put(b"key", make_answer(b"body"))

    def ask(self) -> object:
        self.count += 1
        return self.version

    def find(self, now: float = 0.0) -> bool:
        return self.ready.find(b"key", now, self.soon.append) is not None

    def end_turn(self) -> None:
        soon, self.soon = self.soon, []
        for call in soon:
            call()


def make_answer(body: bytes) -> ReadyAnswer:
    return ReadyAnswer(1, b"head\r\n", body, 200, "updates", "/", "", (), False)


def test_how_things_stand_is_asked_once_a_turn() -> None:
    standing = Standing()
    assert all(standing.find() for _ in range(10)) and standing.count == 1
    assert len(standing.soon) == 1
    standing.end_turn()
    standing.version = 2
    assert not standing.find() and standing.count == 2


def test_a_long_turn_asks_again() -> None:
    standing = Standing()
    assert standing.find(10.0) and standing.find(10.0 + MAX_TURN_SECONDS)
    standing.version = 2
    assert not standing.find(10.1 + MAX_TURN_SECONDS)
    assert standing.count == 2 and len(standing.soon) == 1


def test_a_small_answer_is_one_write_with_the_date_of_now() -> None:
    answer = make_answer(b"body")
    first, second = b"date: 1\r\n\r\n", b"date: 2\r\n\r\n"
    assert answer.join(first) == b"head\r\ndate: 1\r\n\r\nbody"
    assert answer.join(first) is answer.join(first)
    assert answer.join(second) == b"head\r\ndate: 2\r\n\r\nbody"
