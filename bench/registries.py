"""Pushes and pulls through plain registries: requests and bytes of both ways, by layerkit, and
by skopeo, which moves what docker does. No server of ours, no line: a counter stands between the
command and the registry, on loopback.

The old version, then an edit are pushed to an empty registry, by layerkit, and to another one by
skopeo, which leaves nothing beside the image. They are pulled each time: by an empty node (or
layout), then by one that holds the old version. layerkit pulls by the fewest bytes; what it would
choose on a quick line is in `never_slower`.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from versions import layout_of, reference

from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.registry.upstream import open_upstream
from layerkit.edges.store import Store
from layerkit.formats.oci import Platform
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import pull

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests/interop"))

from registry_servers import empty_registry, find_tool

Table = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
KINDS: Final = {
    "docker-registry": "docker-registry 2.8 (Debian)",
    "registry": "distribution v3",
    "crane": "crane's",
    "go-containerregistry": "go-containerregistry's, with the referrers API",
}
CHANGE: Final = ("base", "a_literal")
AMD64 = Platform("linux", "amd64")
NAME: Final = "functions/fn"
_REQUEST: Final = re.compile(rb"(?:GET|HEAD|PUT|POST|PATCH|DELETE) /v2/\S* HTTP/1\.1\r\n")
_LONGEST: Final = 4096  # bytes of a request's first line


class Meter:
    """A port that passes all on to a registry, and counts requests and bytes."""

    def __init__(self, host: str) -> None:
        self._to = (host.partition(":")[0], int(host.partition(":")[2]))
        self._lock = threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._request_count = self._size = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def count(self, call: Callable[[], object]) -> Table:
        """What goes over the port while `call` runs."""
        with self._lock:
            self._request_count = self._size = 0
        call()
        with self._lock:
            return {"request_count": self._request_count, "size": self._size}

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            server = socket.create_connection(self._to)
            for ends in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        """Until one side ends. A first line may come in two reads, and is counted once: what was
        seen of a request is kept up to its last line's end."""
        held = b""
        try:
            while data := source.recv(1 << 16):
                held += data if asks else b""
                found = list(_REQUEST.finditer(held))
                held = held[found[-1].end() if found else 0 :][-_LONGEST:]
                with self._lock:  # before it is passed on: who got the answer may look at once
                    self._size += len(data)
                    self._request_count += len(found)
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue


@contextmanager
def counted(kind: str, folder: Path) -> Iterator[Meter]:
    with empty_registry(kind, folder) as host:
        meter = Meter(host)
        try:
            yield meter
        finally:
            meter.close()


def _run(*argv: str | Path) -> None:
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


class Round:
    """Both versions through one registry, pushed by layerkit or by skopeo; `found` is what went
    over, by what was done and by whom."""

    def __init__(self, meter: Meter, scratch: Path) -> None:
        self.meter, self.scratch = meter, scratch
        scratch.mkdir()
        self.layout = scratch / "layout"
        shutil.copytree(layout_of(CHANGE), self.layout)
        self.ref = Reference.parse(f"{meter.host}/{NAME}:latest")
        self.copy = [find_tool("skopeo"), "copy", "-q", "--insecure-policy", "--preserve-digests"]
        self.found: Table = {}

    def by_layerkit(self) -> None:
        push = [sys.executable, "-m", "layerkit", "push", str(self.ref), "--from", self.layout]
        for step in self._steps():
            self._count(f"push, {step}", "layerkit", lambda: _run(*push, "-q"))
            self._pull(f"pull, {step}", "layerkit", "store")
        self._pull("pull, edit onto an empty node", "layerkit", "empty")

    def by_skopeo(self) -> None:
        here, there = f"oci:{self.layout}:{self.ref}", f"docker://{self.ref}"
        push = [*self.copy, "--dest-tls-verify=false", here, there]
        for step in self._steps():
            into = f"oci:{self.scratch / 'pulled'}:{step}"
            fetch = [*self.copy, "--src-tls-verify=false", there, into]
            self._count(f"push, {step}", "skopeo", lambda: _run(*push))
            self._count(f"pull, {step}", "skopeo", lambda argv=fetch: _run(*argv))
            self._pull(f"pull, {step}", "layerkit, of skopeo's push", "store")

    def _steps(self) -> Iterator[str]:
        layout = Layout(self.layout)
        for step, version in zip(("first", "edit"), CHANGE, strict=True):
            layout.commit(self.ref, layout.resolve(reference(version)))
            yield step

    def _pull(self, what: str, who: str, store: str) -> None:
        def call() -> None:
            with (
                Store(self.scratch / store, Disk()) as opened,
                open_upstream(f"http://{self.meter.host}", opened) as upstream,
            ):
                pull(self.ref, upstream, opened, platform=AMD64, fewest_bytes=True)

        self._count(what, who, call)

    def _count(self, what: str, who: str, call: Callable[[], object]) -> None:
        self.found.setdefault(what, {})[who] = self.meter.count(call)


def _measure(kind: str, scratch: Path) -> Table:
    """By what was done, by whom."""
    found: Table = {}
    for who, run in (("layerkit", Round.by_layerkit), ("skopeo", Round.by_skopeo)):
        with counted(kind, scratch / f"{who}-registry") as meter:
            one = Round(meter, scratch / who)
            run(one)
        for what, counts in one.found.items():
            found.setdefault(what, {}).update(counts)
    return found


def measure(kinds: dict[str, str] = KINDS) -> Table:
    """By registry, by what was done, by whom; {"missing": why} for one that is not here."""
    table: Table = {"change": " -> ".join(CHANGE), "registries": {}}
    for kind, title in kinds.items():
        with tempfile.TemporaryDirectory(prefix="lk-registries-") as scratch:
            try:
                table["registries"][title] = _measure(kind, Path(scratch))
            except pytest.skip.Exception as exc:
                table["registries"][title] = {"missing": str(exc)}
        print(title, table["registries"][title], flush=True)
    return table


if __name__ == "__main__":
    measure()
