"""Asking for news: a chunk server that holds the question, a registry that knows nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from builders import hello_files, noise, publish_image
from registries import FakeRegistry

from layerkit.digest import sha256_digest
from layerkit.edges.polling import Poller, Question
from layerkit.errors import NotFoundError, RemoteDeniedError, RemoteError
from layerkit.jobs.serve import start

GONE = sha256_digest(b"another image")


def ask(body: Callable[[Poller], Awaitable[None]]) -> None:
    async def main() -> None:
        poller = Poller(8)
        try:
            await body(poller)
        finally:
            await poller.close()

    asyncio.run(asyncio.wait_for(main(), 50))


def question(*have: object, name: str = "hello") -> Question:
    return Question(name, "latest", have, "linux/amd64")  # type: ignore[arg-type]


def test_a_chunk_server_holds_the_question_and_answers_with_the_update(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    files = hello_files(noise(30_000))
    old = publish_image(layout, "hello:latest", files).digest

    async def body(poller: Poller) -> None:
        with start(layout) as server:
            held = await poller.wait_for_update(server.url, "", question(old), 1)
            assert held is not None
            assert (held.changed, held.holds, held.waited) == (False, True, True)
            task = asyncio.create_task(poller.wait_for_update(server.url, "", question(old), 60))
            await asyncio.sleep(0.3)
            new = publish_image(layout, "hello:latest", hello_files(noise(30_000) + b"2")).digest
            found = await task
            assert found is not None
            assert (found.changed, found.digest) == (True, new)
            assert 0 < len(found.update) < 5000
            assert await poller.wait_for_update(server.url, "", question(old, name="no"), 1) is None
            with pytest.raises(NotFoundError):
                await poller.look(server.url, "", question(old, name="no"))

    ask(body)


def test_any_registry_is_asked_for_its_manifest() -> None:
    registry = FakeRegistry()
    raw = b'{"schemaVersion":2}'
    registry.manifests["hello"] = {"latest": ("application/vnd.oci.image.manifest.v1+json", raw)}
    there = sha256_digest(raw)

    async def body(poller: Poller) -> None:
        with registry.serving():
            url = registry.url
            assert await poller.wait_for_update(url, "", question(GONE), 1) is None
            assert (await poller.look(url, "", question(GONE))).changed
            assert not (await poller.look(url, "", question(there))).changed

    ask(body)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", RemoteDeniedError),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", RemoteError),
        (b"HTTP/1.1 302 Away\r\nlocation: http://x/\r\ncontent-length: 0\r\n\r\n", RemoteError),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", RemoteError),
        (b"nonsense\r\n\r\n", RemoteError),
        (b"", RemoteError),
    ],
)
def test_a_lying_server_is_an_error(answer: bytes, kind: type[Exception]) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def lie() -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:  # the client may try anew once
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

    threading.Thread(target=lie, daemon=True).start()

    async def body(poller: Poller) -> None:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(kind):
            await poller.wait_for_update(url, "secret", question(GONE), 1)

    ask(body)
    listener.close()
