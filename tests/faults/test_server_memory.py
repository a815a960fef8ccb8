"""A server's memory under many nodes at once: bounded, whatever they fetch and however slowly."""

from __future__ import annotations

import hashlib
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import urllib3
from builders import hello_files, noise, publish_image

NODES = 500
CODE_SIZE = 6_000_000  # bytes that are new in an update, and do not compress
RECEIVE_SIZE = 64 << 10  # bytes that the kernel takes for a node that does not read
PER_NODE = 256 << 10  # bytes that a connection may take of the server; measured: 50 to 220 KB
OLD, NEW = "demo/fn:v1", "demo/fn:v2"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "layout"
    publish_image(path, OLD, hello_files(noise(CODE_SIZE, 1)))
    publish_image(path, NEW, hello_files(noise(CODE_SIZE, 2)))
    return path


@contextmanager
def serving(layout: Path, made: Path) -> Iterator[tuple[int, int]]:
    """A server process: its port, its process id."""
    argv = [sys.executable, "-m", "layerkit", "serve", str(layout), "--listen", "127.0.0.1:0"]
    argv += ["--made", str(made), "--drain", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found is not None, line
        try:
            yield int(found[1]), server.pid
        finally:
            server.send_signal(signal.SIGINT)


def memory_of(pid: int, what: str = "VmRSS") -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


@dataclass(slots=True)
class Node:
    """One that asks, and reads when it is told to."""

    sock: socket.socket
    body: hashlib._Hash = field(default_factory=hashlib.sha256)
    head: bytes = b""
    left: int = -1

    def take(self, data: bytes) -> None:
        if self.left < 0:
            self.head += data
            if b"\r\n\r\n" not in self.head:
                return
            head, _, data = self.head.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            found = re.search(rb"content-length: (\d+)", head)
            assert found is not None
            self.left = int(found[1])
        self.body.update(data)
        self.left -= len(data)


def ask_all(port: int, path: str, count: int) -> list[Node]:
    nodes = []
    for _ in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_SIZE)
        sock.connect(("127.0.0.1", port))
        sock.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        nodes.append(Node(sock))
    return nodes


def wait_until_all_wait(pid: int) -> None:
    """Until the server has given all nodes what they take: it has nothing to do any more."""

    def used() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before, end = -1, time.monotonic() + 8  # who reads nothing for 30 s is cut
    while used() - before > 5 and time.monotonic() < end:
        before = used()
        time.sleep(1)


def read_all(nodes: list[Node]) -> set[str]:
    with selectors.DefaultSelector() as selector:
        for node in nodes:
            selector.register(node.sock, selectors.EVENT_READ, node)
        while selector.get_map():
            for key, _ in selector.select(30):
                node = key.data
                node.take(node.sock.recv(1 << 16))
                if node.left == 0:
                    selector.unregister(node.sock)
                    node.sock.close()
    return {node.body.hexdigest() for node in nodes}


def path_of(layout: Path, port: int, what: str) -> str:
    url = f"http://127.0.0.1:{port}"
    old = urllib3.request("GET", f"{url}/v2/demo/fn/manifests/v1").headers["docker-content-digest"]
    new = urllib3.request("GET", f"{url}/v2/demo/fn/manifests/v2").json()
    if what == "blob":
        return f"/v2/demo/fn/blobs/{max(new['layers'], key=lambda one: one['size'])['digest']}"
    held = old if what == "update" else ""
    return f"/v1/demo/fn/updates/v2?from={held}&platform=linux/amd64&within=10"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["update", "first pull", "blob"])
def test_memory_is_bounded_under_many_slow_nodes(layout: Path, tmp_path: Path, what: str) -> None:
    with serving(layout, tmp_path / "made") as (port, pid):
        path = path_of(layout, port, what)
        want = settled(f"http://127.0.0.1:{port}{path}")
        before = memory_of(pid)
        nodes = ask_all(port, path, NODES)
        wait_until_all_wait(pid)
        held = memory_of(pid) - before
        Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")  # the peak begins anew
        assert read_all(nodes) == {hashlib.sha256(want).hexdigest()}
        peak = memory_of(pid, "VmHWM") - before
    print(f"{what}: {len(want)} bytes each, held {held >> 20} MB, peak {peak >> 20} MB")
    assert held < NODES * PER_NODE and peak < NODES * PER_NODE


def settled(url: str) -> bytes:
    """The answer once it stays the same: what is prepared is prepared."""
    before, same = b"", 0
    while same < 6:
        answer = urllib3.request("GET", url, timeout=60)
        assert answer.status == 200, answer.data[:200]
        same = same + 1 if answer.data == before else 0
        before = answer.data
        time.sleep(1)
    return before
