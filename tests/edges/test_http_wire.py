"""Connections: too slow in either direction, too many, too much; rates; the end of a server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_source import MemorySource, break_storage
from serving import Served, connect, get, read_until_closed, serving

from layerkit.edges.http import Limits

QUICK = Limits(
    head_seconds=0.4, body_seconds=0.4, idle_seconds=0.8, write_seconds=0.4, write_rate=1e9
)
ENDS_WITHIN = 12.0  # seconds: the limits, sweeps, and a busy machine


@pytest.fixture(autouse=True)
def _sweep_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerkit.edges.http.server.SWEEP_SECONDS", 0.1)


@pytest.fixture
def source() -> MemorySource:
    source = MemorySource()
    source.tag("a", "v1", b'{"v":1}')
    return source


@pytest.fixture
def served(source: MemorySource) -> Iterator[Served]:
    with serving(source, limits=QUICK) as found:
        yield found


@contextlib.contextmanager
def ends_soon() -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < ENDS_WITHIN


def drip(sock: socket.socket, data: bytes, seconds: float = ENDS_WITHIN) -> None:
    """A byte every 50 ms, until the server has enough of it."""
    end = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        for at in range(len(data)):
            sock.sendall(data[at : at + 1])
            time.sleep(0.05)
            if time.monotonic() > end:
                return


def test_a_head_that_drips_is_ended(served: Served) -> None:
    with connect(served) as sock, ends_soon():
        threading.Thread(target=drip, args=(sock, b"GET / HTTP/1.1\r\nx: " + b"y" * 500)).start()
        assert read_until_closed(sock).startswith(b"HTTP/1.1 408")
    assert served.metric("layerkit_http_refused_total", reason="slow_head") == 1


def test_a_connection_that_says_nothing_is_ended(served: Served) -> None:
    with connect(served) as sock, ends_soon():
        read_until_closed(sock)


def test_a_second_head_that_drips_is_ended_too(served: Served) -> None:
    with connect(served) as sock, ends_soon():
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        threading.Thread(target=drip, args=(sock, b"GET / HTTP/1.1\r\nx: " + b"y" * 500)).start()
        assert b"HTTP/1.1 408" in read_until_closed(sock)


def test_a_body_that_drips_is_ended(served: Served) -> None:
    head = b"POST /v1/a/chunks HTTP/1.1\r\nhost: x\r\ncontent-length: 3200\r\n\r\n"
    with connect(served) as sock, ends_soon():
        sock.sendall(head)
        threading.Thread(target=drip, args=(sock, b"z" * 3200)).start()
        assert sock.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_body_that_nobody_wants_is_ended(served: Served) -> None:
    """Refused by its head; the rest may not keep the connection for ever."""
    head = b"POST /v1/a/chunks HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n"
    with connect(served) as sock, ends_soon():
        sock.sendall(head)
        threading.Thread(target=drip, args=(sock, b"z" * 3200)).start()
        assert read_until_closed(sock).startswith(b"HTTP/1.1 413")


def test_an_idle_connection_is_ended(served: Served) -> None:
    with connect(served) as sock, ends_soon():
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_until_closed(sock).endswith(b"ok\n")


@pytest.mark.parametrize("kind", ["file", "memory", "ready"])
def test_a_reader_who_stops_is_ended(
    served: Served, source: MemorySource, tmp_path: Path, kind: str
) -> None:
    """Bounded time, and bounded memory: of a blob no more than a part is read ahead."""
    size = 200_000 if kind == "ready" else 30_000_000
    old = source.tag("a", "v1", b'{"v":1}')
    if kind == "ready":
        source.tag("a", "v2", b'{"v":2}')
        source.update("a", "v2", old, bytes(size))
        path = f"/v1/a/updates/v2?from={old}"
        count = 100  # on each other's heels, and none is read
    else:
        file = tmp_path / "blob" if kind == "file" else None
        path, count = f"/v2/a/blobs/{source.blob('a', bytes(size), file)}", 1
    request = f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    with connect(served) as sock, ends_soon():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(count):
            with contextlib.suppress(OSError):
                sock.sendall(request)
        end = time.monotonic() + ENDS_WITHIN
        while served.metric("layerkit_http_refused_total", reason="slow_reader") == 0:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.slow
def test_a_reader_who_is_slow_but_reads_is_served(source: MemorySource, tmp_path: Path) -> None:
    limits = dataclasses.replace(QUICK, write_rate=1 << 20)
    size = 8_000_000
    digest = source.blob("a", bytes(size), tmp_path / "blob")
    with serving(source, limits=limits) as served, connect(served) as sock:
        request = f"GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        sock.sendall(request.encode())
        found = 0
        while part := sock.recv(1 << 20):
            found += len(part)
            time.sleep(0.1)
    assert found > size


@pytest.mark.parametrize("size", [5_000_000, 30_000_000])
def test_who_leaves_in_the_middle_leaves_nothing_behind(
    source: MemorySource, tmp_path: Path, size: int
) -> None:
    paths = [
        f"/v2/a/blobs/{source.blob('a', bytes([at]) * size, file)}"
        for at, file in enumerate([tmp_path / "blob", None])
    ]
    with serving(source) as served:
        get(served, paths[0], "HEAD")
        opened = len(list(Path("/proc/self/fd").iterdir()))
        for at in range(30):
            with connect(served) as sock:
                sock.sendall(f"GET {paths[at % 2]} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                sock.recv(1 if at % 3 else 100_000)
        end = time.monotonic() + ENDS_WITHIN
        while served.metric("layerkit_http_in_flight") and time.monotonic() < end:
            time.sleep(0.05)
        assert served.metric("layerkit_http_in_flight") == 0
        assert len(served.server.connections) <= 1  # of the first request
        assert len(list(Path("/proc/self/fd").iterdir())) <= opened + 2


def test_a_long_head_is_refused(served: Served) -> None:
    with connect(served) as sock, ends_soon():
        with contextlib.suppress(OSError):
            sock.sendall(b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 1_000_000)
        read_until_closed(sock)
    assert served.metric("layerkit_http_refused_total", reason="long_head") == 1


def test_too_many_connections_are_refused(source: MemorySource) -> None:
    with (
        serving(source, limits=Limits(max_connections=3)) as served,
        contextlib.ExitStack() as all_,
    ):
        for _ in range(3):
            all_.enter_context(connect(served))
        time.sleep(0.1)
        sock = all_.enter_context(connect(served))
        assert read_until_closed(sock).startswith(b"HTTP/1.1 503")
        assert served.metric("layerkit_http_refused_total", reason="connections") == 1


def test_too_many_connections_of_an_address_are_refused(source: MemorySource) -> None:
    limits = Limits(max_address_connections=2)
    with serving(source, limits=limits) as served:
        for _ in range(5):  # those that ended do not count
            with connect(served), connect(served) as second:
                second.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                assert read_until_closed(second).startswith(b"HTTP/1.1 200")
                time.sleep(0.02)
        with connect(served), connect(served), connect(served) as third:
            assert read_until_closed(third).startswith(b"HTTP/1.1 503")


def test_bodies_have_no_more_room_than_there_is(source: MemorySource) -> None:
    limits = Limits(max_bodies_size=100_000)
    with serving(source, limits=limits) as served:
        body = bytes(96_000)
        assert get(served, "/v1/a/chunks", "POST", body=body).status == 200
        assert get(served, "/v1/a/chunks", "POST", body=body + body).status == 413
        assert get(served, "/v1/a/chunks", "POST", body=body).status == 200
        assert served.metric("layerkit_http_refused_total", reason="body") == 1


WORDS = [
    b"GET / HTTP/1.1\r\n",
    b"GET /v2/a/manifests/v1 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /v1/a/chunks HTTP/1.1\r\n",
    b"content-length: 32\r\n",
    b"content-length: -1\r\n",
    b"transfer-encoding: chunked\r\n",
    b"expect: 100-continue\r\n",
    b"connection: upgrade\r\nupgrade: websocket\r\n",
    b"range: bytes=0-,1-\r\n",
    b"\r\n",
    b"20\r\n" + b"x" * 32 + b"\r\n0\r\n\r\n",
    b"GET http://x/%ff%00?a=%zz HTTP/1.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
]


def test_whatever_comes_in_the_server_goes_on(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Words of HTTP in any order, whole and torn: answers or an end, and never a bug."""
    numbers = random.Random(20261125)
    for _ in range(150):
        raw = b"".join(numbers.choices(WORDS, k=numbers.randint(1, 6)))
        with connect(served) as sock, contextlib.suppress(OSError):
            cut = numbers.randint(0, len(raw))
            sock.sendall(raw[:cut])
            sock.sendall(raw[cut:])
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(0.02)
            sock.recv(65536)
    assert get(served, "/healthz").status == 200
    assert not [record for record in caplog.records if record.exc_info]
    end = time.monotonic() + ENDS_WITHIN
    while len(served.server.connections) > 1 and time.monotonic() < end:
        time.sleep(0.1)
    assert len(served.server.connections) <= 1


# --- rates ---------------------------------------------------------------------------------------


def test_who_asks_too_often_waits(source: MemorySource) -> None:
    limits = Limits(request_rate=1, burst_seconds=5)
    with serving(source, limits=limits) as served:
        answers = [get(served, "/v2/a/manifests/v1") for _ in range(8)]
        assert [answer.status for answer in answers] == [200] * 5 + [429] * 3
        assert json.loads(answers[-1].data)["errors"][0]["code"] == "TOOMANYREQUESTS"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 5
        assert get(served, "/healthz").status == 200
        assert served.metric("layerkit_http_refused_total", reason="rate") == 3


def test_who_takes_too_much_waits(source: MemorySource) -> None:
    digest = source.blob("a", bytes(50_000))
    limits = Limits(byte_rate=10_000, burst_seconds=10)
    with serving(source, limits=limits) as served:
        found = [get(served, f"/v2/a/blobs/{digest}").status for _ in range(4)]
    assert found == [200, 200, 200, 429] or found == [200, 200, 429, 429]


# --- the end -------------------------------------------------------------------------------------


def test_what_runs_is_finished(source: MemorySource) -> None:
    old = source.tag("a", "v1", b'{"v":1}')
    source.tag("a", "v2", b'{"v":2}')
    source.update("a", "v2", old, b"update")
    source.slow = 0.5
    found: list[bytes] = []
    with serving(source) as served:
        path = f"/v1/a/updates/v2?from={old}"
        thread = threading.Thread(target=lambda: found.append(get(served, path).data))
        thread.start()
        time.sleep(0.2)
    thread.join(5)
    assert found == [b"update"]


def test_readiness_follows_the_storage(served: Served, source: MemorySource) -> None:
    before = get(served, "/readyz").status
    break_storage(source)
    answer = get(served, "/readyz")
    assert (before, answer.status, get(served, "/healthz").status) == (200, 503, 200)
    assert b"disk" not in answer.data  # what is wrong is the log's business
