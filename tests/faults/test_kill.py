"""Real `kill -9` at random moments of a put and commit, and of a gc."""

from __future__ import annotations

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
from layerkit.edges.store import Store
print("ready", flush=True)
with Store(Path(sys.argv[1]), Disk()) as store:
    for n in range(10_000):
        put_image(store, f"a:{n}", noise(5000, n))
        if n >= 2:
            store.remove_image(f"a:{n - 2}")
        if n % 3 == 2:
            store.gc()
        print(n, flush=True)
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
    check_kills(tmp_path / "store", 6, seed=1)


@pytest.mark.slow
def test_a_store_survives_200_kills(tmp_path: Path) -> None:
    check_kills(tmp_path / "store", 200, seed=2)
