"""Real `kill -9` at random moments of puts, commits, gc, eviction, verify and repair: one process,
and several at once."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import noise
from test_crash_points import put_image, read_image

from layerkit.edges.disk import Disk
from layerkit.edges.store import Store

HERE = Path(__file__).parent
WRITER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from builders import noise
from test_crash_points import put_image
from layerkit.edges.disk import Disk
from layerkit.edges.store import Store, merging
merging.MERGE_COUNT = 2  # so that gc joins packs again and again
print("ready", flush=True)
with Store(Path(sys.argv[1]), Disk()) as store:
    for n in range(10_000):
        put_image(store, f"a:{n}", noise(5000, n))
        if n >= 2:
            store.remove_image(f"a:{n - 2}")
        if n % 3 == 2:
            store.gc()
        if n % 5 == 4:
            assert store.verify(repair=True).good
        if n % 7 == 6:
            store.evict(12_000, [store.find_image(f"a:{m}") for m in (n - 1, n)])
        print(n, flush=True)
"""
PARTNER = """
import random, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:4]
from builders import noise
from test_crash_points import put_image, read_image
from layerkit.edges.disk import Disk
from layerkit.edges.store import Store, merging
from layerkit.errors import NotFoundError, StoreChangedError, StoreLockedError
merging.MERGE_COUNT = 2  # so that gc joins packs again and again
print("ready", flush=True)
random_ = random.Random(int(sys.argv[4]))
with Store(Path(sys.argv[1]), Disk()) as store:
    while True:
        n, what = random_.randrange(6), random_.randrange(6)
        try:
            if what < 3:
                with store.use(put_image(store, f"a:{n}", noise(5000, n))):
                    read_image(store, f"a:{n}", noise(5000, n))
            elif what == 3:
                store.remove_image(f"a:{n}")
            elif what == 4:
                store.gc()
            else:
                assert store.verify(repair=True).good
        except (NotFoundError, StoreChangedError, StoreLockedError):
            pass  # somebody else removed it
"""


def kill_one(path: Path, wait: float) -> int:
    """Start a writer, kill it after `wait` seconds; the last number that it committed."""
    argv = [sys.executable, "-c", WRITER, str(path), str(HERE), str(HERE.parent)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        time.sleep(wait)
        writer.kill()
        said = writer.stdout.read().split()
    return int(said[-1]) if said else -1


def check_kills(path: Path, count: int, seed: int) -> None:
    waits = random.Random(seed)
    for turn in range(count):
        last = kill_one(path, waits.uniform(0, 0.15))
        with Store(path, Disk()) as store:
            assert store.verify().good, f"kill {turn} of seed {seed}"
            for image in store.list_images():
                number = int(image.ref.partition(":")[2])
                assert read_image(store, image.ref, noise(5000, number))
            if last >= 0:
                assert store.find_image(f"a:{last}") is not None, "a committed image is lost"
            store.gc()
            put_image(store, "b:77", noise(5000, 77))
            assert read_image(store, "b:77", noise(5000, 77))


def test_a_store_survives_kills(tmp_path: Path) -> None:
    check_kills(tmp_path / "store", 4, seed=1)


def kill_some(path: Path, random_: random.Random) -> None:
    """Three processes work on one store; one after the other is killed."""
    argv = [sys.executable, "-c", PARTNER, str(path), str(HERE), str(HERE.parent)]
    with contextlib.ExitStack() as stack:
        workers = []
        for number in range(3):
            worker = subprocess.Popen([*argv, str(number)], stdout=subprocess.PIPE, text=True)
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            workers.append(worker)
        for worker in workers:
            assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        for worker in workers:
            time.sleep(random_.uniform(0, 0.2))
            assert worker.poll() is None, "a worker failed"
            worker.kill()
            assert worker.stdout is not None
            worker.stdout.close()


def check_kills_of_several(path: Path, count: int, seed: int) -> None:
    random_ = random.Random(seed)
    for turn in range(count):
        kill_some(path, random_)
        with Store(path, Disk()) as store:
            assert store.verify().good, f"kill {turn} of seed {seed}"
            for image in store.list_images():
                number = int(image.ref.partition(":")[2])
                assert read_image(store, image.ref, noise(5000, number))
            store.gc()
            assert os.listdir(path / "sessions") == []
            assert len(os.listdir(path / "packs")) == len(store._chunks.list_packs())


@pytest.mark.slow
def test_a_store_survives_kills_of_several(tmp_path: Path) -> None:
    check_kills_of_several(tmp_path / "store", 1, seed=3)


@pytest.mark.slow
def test_a_store_survives_many_kills_of_several(tmp_path: Path) -> None:
    check_kills_of_several(tmp_path / "store", 50, seed=4)


@pytest.mark.slow
def test_a_store_survives_200_kills(tmp_path: Path) -> None:
    check_kills(tmp_path / "store", 200, seed=2)
