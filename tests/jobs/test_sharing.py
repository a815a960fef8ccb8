"""Real processes that pull overlapping images into one store at once share the work."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import noise, publish_image

from layerkit.edges.disk import Disk
from layerkit.edges.store import Store
from layerkit.jobs.serve import start
from layerkit.jobs.verify import verify_store

BASE, DEPS = noise(400_000, 7), noise(300_000, 8)
CODE_SIZE = 20_000
PULLER = """
import json, sys
from pathlib import Path
from layerkit.edges.disk import Disk
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import pull
url, path, ref = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with Remote(url) as remote, Store(Path(path), Disk()) as store:
    found = pull(Reference.parse(ref), remote, store, fewest_bytes=True)
print(json.dumps({"ref": ref, "moved": found.moved_size}), flush=True)
"""


def publish(layout: Path, chunks: bool) -> None:
    for number, name in enumerate(("one", "two", "three", "four")):
        files = {"base": {"a": BASE}, "deps": {"b": DEPS}, "code": {"c": noise(CODE_SIZE, number)}}
        publish_image(layout, f"{name}:v1", files, chunks=chunks)


@contextlib.contextmanager
def pullers(url: str, path: Path, refs: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ready to pull, and begin at a word."""
    with contextlib.ExitStack() as stack:
        workers = []
        for ref in refs:
            worker = subprocess.Popen(
                [sys.executable, "-c", PULLER, url, str(path), ref],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            workers.append(worker)
        for worker in workers:
            assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        yield workers


def begin(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()


def check_shared(tmp_path: Path, chunks: bool, *, kill: bool = False) -> int:
    """Bytes that were moved in all, by eight processes for four images."""
    publish(tmp_path / "layout", chunks)
    refs = [f"{name}:v1" for name in ("one", "two", "three", "four")] * 2
    store_path = tmp_path / "store"
    Store(store_path, Disk()).close()
    moved = 0
    with (
        start(tmp_path / "layout") as running,
        pullers(running.url, store_path, refs) as workers,
    ):
        for worker in workers:
            begin(worker)
        if kill:
            workers[0].kill()
        for worker in workers[kill:]:
            said = worker.communicate(timeout=120)[0]
            assert worker.returncode == 0, said
            moved += json.loads(said)["moved"]
    assert verify_store(store_path, Disk()).good
    with Store(store_path, Disk()) as store:
        assert len([image for image in store.list_images() if image.complete]) == 4
    return moved


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [True, False], ids=["forms", "plain"])
def test_eight_processes_fetch_each_layer_once(tmp_path: Path, chunks: bool) -> None:
    unique = len(BASE) + len(DEPS) + 4 * CODE_SIZE
    moved = check_shared(tmp_path, chunks)
    assert moved < 1.2 * unique, f"{moved} bytes moved for {unique}"


@pytest.mark.slow
def test_a_killed_process_frees_what_it_claimed(tmp_path: Path) -> None:
    check_shared(tmp_path, True, kill=True)
