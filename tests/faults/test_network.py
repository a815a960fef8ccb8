"""Networks that break: a pull goes on where it was cut and does not fetch again what it has."""

from __future__ import annotations

import json
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lying_server as lies
import pytest
from builders import AMD64, hello_files, noise, publish_image
from lying_server import Answer, Asked, Lie, Line, LyingServer
from netns import SERVER, Lab, Network, end, why_not

from layerkit.edges.disk import Disk
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.errors import RemoteError
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import PullResult, pull
from layerkit.jobs.serve import start

OLD = noise(60_000)
EDITED = OLD[:30_000] + b"one edited string" + OLD[30_000:]
GROWN = OLD + noise(900_000, 5)
REFS = {"old": "team/hello:v1", "edited": "team/hello:v2", "grown": "team/hello:v3"}
ASKED_AGAIN = 4000  # bytes: a request's body, chunks by their ids where the way by places was cut
IN_FLIGHT = 160 << 10  # bytes that a cut may cost: a zstd block, and what was in the buffers


@dataclass(frozen=True)
class Honest:
    url: str
    layout: Path
    node: Path  # a store that holds the old image


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Honest]:
    folder = tmp_path_factory.mktemp("network")
    for name, binary in {"old": OLD, "edited": EDITED, "grown": GROWN}.items():
        publish_image(folder / "layout", REFS[name], hello_files(binary))
    with start(folder / "layout") as server:
        run(server.url, folder / "node", REFS["old"])
        yield Honest(server.url, folder / "layout", folder / "node")


def run(url: str, store: Path, ref: str, pauses: tuple[float, ...] = (0.01,) * 3) -> PullResult:
    with Remote(url, pauses=pauses) as remote, Store(store, Disk()) as opened:
        result = pull(Reference.parse(ref), remote, opened, platform=AMD64, fewest_bytes=True)
        assert opened.verify().good
    return result


def cut_at(size: int) -> lies.Tell:
    """The answer breaks off after `size` bytes, head included."""

    def tell(line: Line, _: Asked, answer: Answer) -> None:
        line.send((answer.head(len(answer.body)) + answer.body)[:size])

    return tell


def measure(told: list[int]) -> lies.Tell:
    """The honest answer; its length, head included, goes to `told`."""

    def tell(line: Line, _: Asked, answer: Answer) -> None:
        whole = answer.head(len(answer.body)) + answer.body
        told.append(len(whole))
        line.send(whole)

    return tell


def shut(*patterns: str) -> list[Lie]:
    return [Lie(pattern, lies.say(404)) for pattern in patterns]


def check_cuts(
    honest: Honest, folder: Path, ref: str, step: int, shutters: tuple[str, ...] = ()
) -> int:
    """Cut each answer of a pull at every `step`-th byte, one in each pull. Returns the cuts."""
    sizes: list[int] = []
    start_from = folder / "fresh"
    if ref == REFS["old"]:
        start_from.mkdir()
    else:
        start_from = honest.node
    shutil.copytree(start_from, folder / "whole")
    with LyingServer(honest.url, [*shut(*shutters), Lie("", measure(sizes))]) as server:
        moved = run(server.url, folder / "whole", ref).moved_size
    cuts = 0
    for number, size in enumerate(sizes):
        for at in range(random.Random(size).randrange(step), size + 1, step):
            cuts += 1
            node = folder / f"{number}-{at}"
            shutil.copytree(start_from, node)
            lie = NthLie(number, cut_at(at))
            with LyingServer(honest.url, [*shut(*shutters), lie]) as server:
                result = run(server.url, node, ref)
            assert lie.told == 1
            limit = moved + min(at, IN_FLIGHT) + ASKED_AGAIN
            assert result.moved_size <= limit, f"answer {number}, byte {at}"
            shutil.rmtree(node)
    return cuts


class NthLie(Lie):
    """Only the n-th request (from 0) is lied to."""

    def __init__(self, number: int, tell: lies.Tell) -> None:
        super().__init__("", tell, 1)
        self._number = number
        self._seen = 0

    def takes(self, asked: Asked) -> bool:
        self._seen += 1
        return self._seen == self._number + 1


PLAIN = ("/updates/",)
WAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "update": (REFS["edited"], ()),
    "chunks": (REFS["edited"], PLAIN),
    "first pull": (REFS["old"], PLAIN),
}


@pytest.mark.parametrize(("way", "step"), [("update", 61), ("chunks", 211), ("first pull", 9973)])
def test_a_cut_anywhere_is_survived(honest: Honest, tmp_path: Path, way: str, step: int) -> None:
    ref, shutters = WAYS[way]
    assert check_cuts(honest, tmp_path, ref, step, shutters) > 5


@pytest.mark.slow
@pytest.mark.parametrize(("way", "step"), [("update", 1), ("chunks", 7), ("first pull", 389)])
def test_a_cut_at_every_byte_is_survived(
    honest: Honest, tmp_path: Path, way: str, step: int
) -> None:
    """Every byte of an update of one string, every seventh of documents and chunks of it."""
    ref, shutters = WAYS[way]
    assert check_cuts(honest, tmp_path, ref, step, shutters) > 200


# --- large answers ---------------------------------------------------------------------------


@pytest.mark.parametrize("shutters", [(), PLAIN], ids=["update", "chunks"])
@pytest.mark.parametrize(
    "share",
    [pytest.param(0.1, marks=pytest.mark.slow), 0.5, pytest.param(0.99, marks=pytest.mark.slow)],
)
def test_a_large_answer_goes_on(
    honest: Honest, tmp_path: Path, shutters: tuple[str, ...], share: float
) -> None:
    shutil.copytree(honest.node, tmp_path / "whole")
    moved = run_shut(honest, tmp_path / "whole", shutters).moved_size
    shutil.copytree(honest.node, tmp_path / "cut")
    lie = LargeLie(lies.cut(share))
    again = run_shut(honest, tmp_path / "cut", shutters, lie)
    assert lie.told == 1 and again.moved_size <= moved + IN_FLIGHT


class LargeLie(Lie):
    """The first `times` answers of over 500 KB are lied about; who asks may not know which."""

    def __init__(self, tell: lies.Tell, times: int = 1) -> None:
        super().__init__("", self._tell, 1 << 30)
        self._large, self._left = tell, times

    def _tell(self, line: Line, asked: Asked, answer: Answer) -> None:
        if len(answer.body) > 500_000 and self._left:
            self._left -= 1
            self._large(line, asked, answer)
            return
        self.told -= 1
        line.send(answer.head(len(answer.body)), answer.body)


def run_shut(
    honest: Honest, store: Path, shutters: tuple[str, ...], *more: Lie, ref: str = "grown"
) -> PullResult:
    with LyingServer(honest.url, [*shut(*shutters), *more]) as server:
        return run(server.url, store, REFS[ref])


@pytest.mark.parametrize("way", ["update", "chunks", "first pull", "layer"])
def test_a_line_that_breaks_again_and_again(honest: Honest, tmp_path: Path, way: str) -> None:
    """No answer brings more than 200 KB: of chunks, that is a zstd block of 128 KiB at least."""
    shutters = {"update": (), "layer": (*PLAIN, "/referrers/")}.get(way, PLAIN)
    if way in ("update", "chunks"):
        shutil.copytree(honest.node, tmp_path / "node")

    def tell(line: Line, _: Asked, answer: Answer) -> None:
        line.send(answer.head(len(answer.body)), answer.body[:200_000])

    assert run_shut(honest, tmp_path / "node", shutters, Lie("", tell)).moved_size < 1_500_000


# --- servers that go -------------------------------------------------------------------------


def serve_argv(layout: Path, listen: str, made: Path, *more: str) -> list[str]:
    argv = [sys.executable, "-m", "layerkit", "serve", str(layout), "--listen", listen]
    return [*argv, "--made", str(made), *more]


class Restarted:
    """A server process behind a pipe that kills it and starts it anew after so many bytes."""

    def __init__(
        self, layout: Path, made: Path, after: int, how: signal.Signals, down: float
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self._argv = serve_argv(layout, f"127.0.0.1:{self._port}", made, "--drain", "0")
        self._how, self._down = how, down
        self._left = after
        self.restarts = 0
        self._process = self._start()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self._argv, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        return process

    def _accept(self) -> None:
        while True:
            try:
                node, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(node,), daemon=True).start()

    def _carry(self, node: socket.socket) -> None:
        with node:
            try:
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                return
            with server:
                while True:
                    for ready in select.select([node, server], [], [])[0]:
                        try:
                            data = ready.recv(16 << 10)
                            (node if ready is server else server).sendall(data)
                        except OSError:
                            return
                        if not data:
                            return
                        if ready is server:
                            self._count(len(data))

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0 and not self.restarts:
            self.restarts = 1
            self._process.send_signal(self._how)
            self._process.wait()
            time.sleep(self._down)
            end(self._process)
            self._process = self._start()

    def close(self) -> None:
        self._listener.close()
        end(self._process)

    def __enter__(self) -> Restarted:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("ref", ["first", "grown"])
def test_a_server_that_is_restarted_in_mid_pull(
    honest: Honest, tmp_path: Path, how: signal.Signals, ref: str
) -> None:
    node = tmp_path / "node"
    if ref == "grown":
        shutil.copytree(honest.node, node)
    with Restarted(honest.layout, tmp_path / "made", 500_000, how, 0.5) as server:
        result = run(server.url, node, REFS["grown"], pauses=(0.2, 0.8, 3.0))
    assert server.restarts == 1
    assert result.moved_size < 1_050_000 + IN_FLIGHT, "what it had was fetched again"


@pytest.mark.parametrize("way", ["first update", "chunks"])
def test_a_pull_that_failed_is_gone_on_with(honest: Honest, tmp_path: Path, way: str) -> None:
    """The server goes away for good in the middle; the next pull, later, fetches the rest."""
    shutters = () if way == "first update" else PLAIN
    if way == "chunks":
        shutil.copytree(honest.node, tmp_path / "node")
    going = Lie("", lambda line, _, answer: line.reset())
    cut: Callable[..., None] = lies.cut(0.6)

    def tell(line: Line, asked: Asked, answer: Answer) -> None:
        if len(answer.body) < 500_000 and not going.told:
            line.send(answer.head(len(answer.body)), answer.body)
        elif going.told:
            line.reset()
        else:
            going.told += 1
            cut(line, asked, answer)

    with pytest.raises(RemoteError):
        run_shut(honest, tmp_path / "node", shutters, Lie("", tell))
    result = run_shut(honest, tmp_path / "node", shutters)
    assert result.moved_size < 0.4 * 1_000_000 + IN_FLIGHT


# --- a line of its own -----------------------------------------------------------------------

PULL = """
import sys, json, time
from pathlib import Path
from layerkit.edges.disk import Disk
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.errors import RemoteError
from layerkit.formats.oci import Platform
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import pull
url, store, *refs = sys.argv[1:]
for ref in refs:
    with Remote(url) as remote, Store(Path(store), Disk()) as opened:
        platform = Platform("linux", "amd64")
        result = pull(Reference.parse(ref), remote, opened, platform=platform, fewest_bytes=True)
        assert opened.verify().good
    print(json.dumps([result.moved_size, result.request_count, result.seconds]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [Network(round_trip=200, loss=5), Network(round_trip=40, rate=2, loss=5)]
)
def test_pulls_over_a_line_that_loses_packets(
    honest: Honest, tmp_path: Path, network: Network
) -> None:
    """5 % of the packets each way, 100 ms of delay each way; then a slow line, too."""
    why = why_not()
    if why:
        pytest.skip(why)
    with Lab(network) as lab:
        argv = serve_argv(honest.layout, f"{SERVER}:7420", tmp_path / "made", "--open")
        server = subprocess.Popen(lab.argv("server", *argv), stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None and server.stdout.readline()
            script = [sys.executable, "-c", PULL, f"http://{SERVER}:7420", tmp_path / "node"]
            said = lab.run("node", *map(str, script), *REFS.values())
            received = lab.bytes_received("node")
        finally:
            end(server)
    moved = [json.loads(line)[0] for line in said.splitlines()]
    assert len(moved) == 3 and moved[1] < 5000
    assert received < 1.25 * sum(moved) + 40_000, "bytes were fetched again"
