"""edges/remote against a server that lies, breaks off, drips: refused by name, in bounded time."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zstandard
from builders import noise

from layerkit.digest import chunk_id, sha256_digest
from layerkit.edges.remote import Remote, Tls
from layerkit.errors import (
    FormatError,
    IntegrityError,
    LayerkitError,
    NotFoundError,
    RemoteDeniedError,
    RemoteError,
    RemoteLimitError,
    UsageError,
)
from layerkit.formats.protocol import BATCH_TYPE, serialize_chunk_batch
from layerkit.formats.update import UPDATE_TYPE

BLOB = noise(50_000)
DIGEST = sha256_digest(BLOB)
CHUNK = noise(1000)
ID = chunk_id(CHUNK)
Say = Callable[[str, Callable[[bytes], None]], None]


def head(status: str, size: int | None, kind: str = "application/octet-stream") -> bytes:
    length = "" if size is None else f"content-length: {size}\r\n"
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{length}connection: close\r\n\r\n".encode()
    )


@contextmanager
def lying(say: Say) -> Iterator[str]:
    """A server whose whole answer, head included, is what `say(request, send)` sends."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                line = self.rfile.readline()
                if not line:
                    return
                request += line
            text = request.decode().lower()
            if "content-length: " in text:
                self.rfile.read(int(text.partition("content-length: ")[2].split()[0]))
            with suppress(OSError):  # the client had enough
                say(text, self.wfile.write)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def client(url: str, **options: object) -> Remote:
    options.setdefault("pauses", (0.01, 0.01))
    return Remote(url, **options)  # type: ignore[arg-type]


def answer(*parts: bytes) -> Say:
    return lambda _, send: [send(part) for part in parts] and None


def endless(_: str, send: Callable[[bytes], None]) -> None:
    send(head("200 OK\r\ntransfer-encoding: chunked", None))
    while True:
        send(b"10000\r\n" + bytes(65536) + b"\r\n")


def chunked(*parts: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return head("200 OK\r\ntransfer-encoding: chunked", None) + body + b"0\r\n\r\n"


def continuing(_: str, send: Callable[[bytes], None]) -> None:
    while True:
        send(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.01)


def slow_head(_: str, send: Callable[[bytes], None]) -> None:
    send(b"HTTP/1.1 200 OK\r\n")
    while True:
        send(b"x")
        time.sleep(0.02)


def drip(_: str, send: Callable[[bytes], None]) -> None:
    send(head("200 OK", len(BLOB)))
    for byte in BLOB:
        send(bytes([byte]))
        time.sleep(0.02)


BLOB_LIES: dict[str, tuple[Say, type[LayerkitError]]] = {
    "short": (answer(head("200 OK", 10), BLOB[:10]), IntegrityError),
    "short, of unknown length": (answer(chunked(BLOB[:10])), IntegrityError),
    "without a length": (answer(head("200 OK", None), BLOB), RemoteError),
    "cut in the head": (answer(head("200 OK", len(BLOB))[:60]), RemoteError),
    "long": (answer(head("200 OK", len(BLOB) + 1), BLOB, b"x"), RemoteLimitError),
    "long, of unknown length": (answer(chunked(BLOB, b"x" * 9)), RemoteLimitError),
    "other bytes": (answer(head("200 OK", len(BLOB)), BLOB[::-1]), IntegrityError),
    "always cut": (answer(head("200 OK", len(BLOB)), BLOB[:9]), RemoteError),
    "html": (answer(head("200 OK", 11, "text/html"), b"<html>busy!"), IntegrityError),
    "redirect": (answer(head("302 Found\r\nlocation: http://127.0.0.1/", 0)), RemoteError),
    "denied": (answer(head("403 Forbidden", 0)), RemoteDeniedError),
    "absent": (answer(head("404 Not Found", 0)), NotFoundError),
    "not modified": (answer(head("304 Not Modified", 0)), IntegrityError),
    "broken": (answer(head("500 Oops", 0)), RemoteError),
    "no http": (answer(b"SSH-2.0\r\n"), RemoteError),
    "nothing": (answer(), RemoteError),
    "endless": (endless, RemoteLimitError),
    "endless head": (answer(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 100_000), RemoteError),
}


@pytest.mark.parametrize("name", BLOB_LIES)
def test_a_lie_about_a_blob_is_refused(name: str) -> None:
    say, kind = BLOB_LIES[name]
    started = time.monotonic()
    with lying(say) as url, client(url) as remote, pytest.raises(kind):
        remote.fetch_blob("a", DIGEST, len(BLOB))
    assert time.monotonic() - started < 20


def test_a_slow_drip_is_given_up() -> None:
    with lying(drip) as url, client(url, least_seconds=-3.0) as remote:
        started = time.monotonic()
        with pytest.raises(RemoteLimitError, match="too slow"):
            remote.fetch_blob("a", DIGEST, len(BLOB))
    assert time.monotonic() - started < 20


def test_silence_is_given_up() -> None:
    with (
        lying(lambda _, send: time.sleep(3)) as url,
        client(url, read_seconds=0.1) as remote,
        pytest.raises(RemoteError),
    ):
        remote.fetch_blob("a", DIGEST, len(BLOB))


@pytest.mark.parametrize("say", [continuing, slow_head])
def test_a_head_that_never_ends_is_given_up(say: Say) -> None:
    started = time.monotonic()
    with (
        lying(say) as url,
        client(url, read_seconds=0.2, pauses=()) as remote,
        pytest.raises(RemoteError),
    ):
        remote.fetch_blob("a", DIGEST, len(BLOB))
    assert time.monotonic() - started < 20


def test_a_drip_below_the_least_rate_is_given_up_whatever_the_limit() -> None:
    with lying(drip) as url, client(url, least_seconds=0.2) as remote:
        started = time.monotonic()
        with pytest.raises(RemoteLimitError, match="too slow"):
            remote.fetch_blob("a", DIGEST, 1 << 30)
    assert time.monotonic() - started < 20


def test_a_cut_blob_goes_on_where_it_was_cut() -> None:
    def say(request: str, send: Callable[[bytes], None]) -> None:
        if "range: bytes=" not in request:
            send(head("200 OK", len(BLOB)) + BLOB[:20_000])
            return
        start = int(request.partition("range: bytes=")[2].split("-")[0])
        send(head("206 Partial Content", len(BLOB) - start) + BLOB[start : start + 20_000])

    with lying(say) as url, client(url) as remote:
        assert remote.fetch_blob("a", DIGEST, len(BLOB)) == BLOB
        assert (remote.bytes_moved, remote.request_count) == (len(BLOB), 3)


def test_tries_begin_anew_whenever_a_line_that_breaks_brought_something() -> None:
    part = 20_000  # bytes a connection

    def say(request: str, send: Callable[[bytes], None]) -> None:
        start = int((request.partition("range: bytes=")[2] or "0-").split("-")[0])
        status = "206 Partial Content" if start else "200 OK"
        send(head(status, len(BLOB) - start) + BLOB[start : start + part])

    with lying(say) as url, client(url, pauses=(0.01,)) as remote:
        assert remote.fetch_blob("a", DIGEST, len(BLOB)) == BLOB


@pytest.mark.parametrize("kept", [True, False])
def test_an_update_goes_on_only_with_the_same_body(kept: bool) -> None:
    def say(request: str, send: Callable[[bytes], None]) -> None:
        etag = '200 OK\r\netag: "one"'
        if "range: bytes=" not in request:
            send(head(etag, len(BLOB), UPDATE_TYPE) + BLOB[:20_000])
        elif kept and 'if-range: "one"' in request:
            send(head("206 Partial Content", len(BLOB) - 20_000, UPDATE_TYPE) + BLOB[20_000:])
        else:
            send(head("200 OK", len(BLOB), UPDATE_TYPE) + BLOB)

    with lying(say) as url, client(url) as remote:
        body = remote.open_update("a", "v1", [DIGEST], "linux/amd64")
        assert body is not None
        if kept:
            assert b"".join(body.parts) == BLOB
            return
        with pytest.raises(RemoteError, match="cannot go on"):
            list(body.parts)


def test_an_update_names_its_image_and_says_what_the_node_will_wait_for() -> None:
    asked: list[str] = []

    def say(request: str, send: Callable[[bytes], None]) -> None:
        asked.append(request.split()[1])
        send(head(f"200 OK\r\ndocker-content-digest: {DIGEST}", 4, UPDATE_TYPE) + b"body")

    with lying(say) as url, client(url) as remote:
        body = remote.open_update("a", "v1", [], "linux/amd64", within=0.25, wait=2)
        assert body is not None and (body.digest, b"".join(body.parts)) == (DIGEST, b"body")
    assert asked == ["/v1/a/updates/v1?from=&platform=linux/amd64&within=0.25&wait=2"]


def test_an_offered_update_is_taken_once_and_asks_nobody() -> None:
    with lying(answer(head("404 Not Found", 0))) as url, client(url) as remote:
        remote.offer_update("a", "v1", b"body")
        body = remote.open_update("a", "v1", [DIGEST], "linux/amd64")
        assert body is not None and b"".join(body.parts) == b"body" and not remote.request_count
        with pytest.raises(NotFoundError):
            remote.open_update("a", "v1", [DIGEST], "linux/amd64")


@pytest.mark.parametrize("status", ["400 Bad", "404 None", "405 What"])
def test_a_server_that_does_not_know_such_updates_has_none(status: str) -> None:
    with (
        lying(answer(head(status, 0))) as url,
        client(url) as remote,
        pytest.raises(NotFoundError),
    ):
        remote.open_update("a", "v1", [], "linux/amd64")


def test_a_range_that_was_not_asked_for_is_refused() -> None:
    def say(request: str, send: Callable[[bytes], None]) -> None:
        if "range: bytes=" not in request:
            send(head("200 OK", len(BLOB)) + BLOB[:20_000])
        else:
            status = "206 Partial Content\r\ncontent-range: bytes 0-49999/50000"
            send(head(status, len(BLOB)) + BLOB)

    with lying(say) as url, client(url) as remote, pytest.raises(RemoteError, match="range"):
        remote.fetch_blob("a", DIGEST, len(BLOB))


@pytest.mark.parametrize(("said", "slept"), [("7", 7.0), ("0", 0.01), ("soon", 0.01)])
def test_retry_after_is_honoured(said: str, slept: float) -> None:
    seen: list[str] = []
    pauses: list[float] = []

    def say(request: str, send: Callable[[bytes], None]) -> None:
        seen.append(request)
        send(head(f"503 Busy\r\nretry-after: {said}", 0) if len(seen) < 2 else b"")
        send(head("200 OK", len(BLOB)) + BLOB if len(seen) > 1 else b"")

    with lying(say) as url, client(url, sleep=pauses.append) as remote:
        assert remote.fetch_blob("a", DIGEST, len(BLOB)) == BLOB
    assert pauses == [slept]


def test_who_asks_for_too_long_a_wait_is_given_up() -> None:
    say = answer(head("429 Slow down\r\nretry-after: 3600", 0))
    with lying(say) as url, client(url) as remote, pytest.raises(RemoteError):
        remote.fetch_blob("a", DIGEST, len(BLOB))


def test_connections_are_kept() -> None:
    sockets: set[object] = set()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline():
                while line.strip():
                    line = self.rfile.readline()
                sockets.add(self.client_address)
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50000\r\n\r\n" + BLOB)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with client(f"http://127.0.0.1:{server.server_address[1]}") as remote:
            for _ in range(3):
                remote.fetch_blob("a", DIGEST, len(BLOB))
        server.shutdown()
    assert len(sockets) == 1


def test_the_link_is_measured() -> None:
    big = noise(300_000)

    def say(request: str, send: Callable[[bytes], None]) -> None:
        time.sleep(0.02)
        send(head("200 OK", len(big)))
        for at in range(0, len(big), 30_000):  # 30 KB in 10 ms
            send(big[at : at + 30_000])
            time.sleep(0.01)

    with lying(say) as url, client(url) as remote:
        remote.fetch_blob("a", sha256_digest(big), len(big))
        assert remote.link.round_trip >= 0.02
        assert 0 < remote.link.bandwidth <= 4e6


def test_a_server_without_ranges_starts_again() -> None:
    seen: list[str] = []

    def say(request: str, send: Callable[[bytes], None]) -> None:
        seen.append(request)
        send(head("200 OK", len(BLOB)) + (BLOB if len(seen) > 1 else BLOB[:20_000]))

    with lying(say) as url, client(url) as remote:
        assert remote.fetch_blob("a", DIGEST, len(BLOB)) == BLOB


@pytest.mark.parametrize("status", ["500 Oops", "503 Busy", "429 Slow down"])
def test_a_server_that_recovers_is_asked_again(status: str) -> None:
    seen: list[str] = []

    def say(request: str, send: Callable[[bytes], None]) -> None:
        seen.append(request)
        send(head(status, 0) if len(seen) < 3 else head("200 OK", len(BLOB)) + BLOB)

    with lying(say) as url, client(url) as remote:
        assert remote.fetch_blob("a", DIGEST, len(BLOB)) == BLOB


@pytest.mark.parametrize("status", ["400 Bad", "401 Who", "403 No", "404 None", "413 Big"])
def test_other_errors_are_not_asked_again(status: str) -> None:
    with lying(answer(head(status, 0))) as url, client(url) as remote:
        with pytest.raises(LayerkitError):
            remote.fetch_blob("a", DIGEST, len(BLOB))
        assert remote.request_count == 1


def test_the_servers_own_words_are_the_cause() -> None:
    body = b'{"errors":[{"code":"DENIED","message":"token has no scope pull"}]}'
    with (
        lying(answer(head("403 No", len(body)), body)) as url,
        client(url) as remote,
        pytest.raises(RemoteDeniedError) as caught,
    ):
        remote.fetch_blob("a", DIGEST, len(BLOB))
    assert caught.value.cause == "token has no scope pull [DENIED]"


def _batch(raw: bytes) -> Say:
    return answer(head("200 OK", len(raw), BATCH_TYPE), raw)


GOOD = b"".join(serialize_chunk_batch([CHUNK], 1))
BATCH_LIES: dict[str, tuple[Say, type[LayerkitError]]] = {
    "html": (answer(head("200 OK", 6, "text/html"), b"<html>"), RemoteError),
    "html with our type": (_batch(b"<html>"), FormatError),
    "bomb": (_batch(zstandard.ZstdCompressor().compress(bytes(1 << 28))), FormatError),
    "cut": (answer(head("200 OK", len(GOOD), BATCH_TYPE), GOOD[:-9]), RemoteError),
    "short": (_batch(GOOD[:-9]), FormatError),
    "long": (_batch(GOOD + b"more"), FormatError),
    "too many": (_batch(b"".join(serialize_chunk_batch([CHUNK, CHUNK], 2))), FormatError),
    "endless": (endless, RemoteError),
}


@pytest.mark.parametrize("name", BATCH_LIES)
def test_a_lie_about_a_batch_is_refused(name: str) -> None:
    say, kind = BATCH_LIES[name]
    started = time.monotonic()
    with lying(say) as url, client(url) as remote, pytest.raises(kind):
        list(remote.fetch_chunks("a", [ID], [len(CHUNK)]))
    assert time.monotonic() - started < 20


def test_what_came_before_a_cut_is_given() -> None:
    chunks = [noise(70_000, seed) for seed in range(4)]
    raw = b"".join(serialize_chunk_batch(chunks, 4))
    say = answer(head("200 OK", len(raw), BATCH_TYPE), raw[: len(raw) // 2])
    got = []
    with lying(say) as url, client(url) as remote, pytest.raises(RemoteError):
        for data in remote.fetch_chunks("a", [ID] * 4, [70_000] * 4):
            got.append(data)
    assert got == chunks[: len(got)] and len(got) >= 1


def test_a_batch_counts_what_is_sent_and_what_comes() -> None:
    with lying(_batch(GOOD)) as url, client(url) as remote:
        assert list(remote.fetch_chunks("a", [ID], [len(CHUNK)])) == [CHUNK]
        assert remote.bytes_moved == 32 + len(GOOD)


def test_a_wrong_single_chunk_is_refused() -> None:
    say = answer(head("200 OK", len(CHUNK)), CHUNK[::-1])
    with lying(say) as url, client(url) as remote, pytest.raises(IntegrityError):
        remote.fetch_chunk("a", ID, len(CHUNK))


def test_a_manifest_that_is_html_is_refused() -> None:
    say = answer(head("200 OK", 6, "text/html"), b"<html>")
    with lying(say) as url, client(url) as remote, pytest.raises(RemoteError, match="manifest"):
        remote.resolve("a", "v1")


def test_a_server_that_is_not_there_is_a_remote_error() -> None:
    with lying(answer()) as url:
        pass
    with client(url) as remote, pytest.raises(RemoteError, match="cannot fetch"):
        remote.resolve("a", "v1")


@pytest.mark.parametrize("url", ["", "node7", "ftp://node7", "http://", "http://u:p@node7"])
def test_a_bad_url_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError):
        Remote(url)


@pytest.mark.parametrize("token", ["two words", "a\nb", "ü"])
def test_a_token_that_fits_no_header_is_a_usage_error(token: str) -> None:
    with pytest.raises(UsageError):
        Remote("https://node7", token=token)


def test_a_token_in_clear_is_said(caplog: pytest.LogCaptureFixture) -> None:
    for url in ("http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://node7"):
        Remote(url, token="secret")
    assert not caplog.records
    Remote("http://node7", token="secret")
    assert "clear" in caplog.text and "secret" not in caplog.text


def test_a_certificate_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Remote("https://node7", tls=Tls(tmp_path / "absent.pem"))
