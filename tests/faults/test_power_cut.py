"""Power cuts at every point of put, commit, gc and repair, SQLite's own writes among them."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from power import Replay, Step, read_trace, record
from test_crash_points import NEW, OLD, put_image, read_image

from layerkit.edges.disk import Disk
from layerkit.edges.store import Store
from layerkit.jobs.verify import verify_store

HERE = Path(__file__).parent
SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_crash_points import NEW, OLD, put_image
from layerkit.edges.disk import Disk
from layerkit.edges.store import Store
from layerkit.jobs.verify import verify_store
path = Path(sys.argv[1])
with Store(path, Disk()) as store:
    put_image(store, "a:2", NEW)
    print("two", flush=True)
    store.remove_image("a:3")
    store.gc()
    print("gone", flush=True)
    put_image(store, "a:4", NEW + OLD)
    print("four", flush=True)
verify_store(path, Disk(), repair=True)
"""


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Step]]]:
    """A store before the work, and the steps of the work."""
    if not shutil.which("strace"):
        pytest.skip("no strace")
    folder = tmp_path_factory.mktemp("power")
    with Store(folder / "s", Disk()) as store:
        put_image(store, "a:1", OLD)
        put_image(store, "a:3", OLD[:3000])
    shutil.copytree(folder / "s", folder / "before")
    (folder / "script.py").write_text(SCRIPT)
    try:
        argv = [str(folder / "s"), str(HERE), str(HERE.parent)]
        record(folder / "script.py", argv, folder / "trace")
    except subprocess.CalledProcessError as exc:
        pytest.skip(f"strace does not work here: {exc.stderr[-200:]!r}")
    steps = list(read_trace(folder / "trace", str(folder / "s")))
    shutil.rmtree(folder / "s")
    shutil.copytree(folder / "before", folder / "s")
    yield folder / "s", steps


def check(path: Path, said: str, where: str) -> None:
    result = verify_store(path, Disk())
    assert result.good, f"{where}: {result.list_problems()}"
    with Store(path, Disk()) as store:
        assert read_image(store, "a:1", OLD), where
        assert read_image(store, "a:2", NEW) or "two" not in said, f"{where}: a commit is lost"
        assert read_image(store, "a:4", NEW + OLD) or "four" not in said, f"{where}: lost"
        assert store.find_image("a:3") is None or "gone" not in said, where
        store.gc()
        put_image(store, "a:5", NEW[:4000])
        assert read_image(store, "a:5", NEW[:4000]) and store.verify().good, where


def check_cuts(
    cuts: tuple[Path, list[Step]], target: Path, every: int, mode: str, seed: int = 0
) -> None:
    root, steps = cuts
    replay, said, random_ = Replay(root), "", random.Random(seed)
    assert len(steps) > 60 and any(step.path.endswith("-wal") for step in steps)
    for number, step in enumerate(steps):
        replay.apply(step)
        said += step.data.decode() if not step.path else ""
        if number % every == 0 or number == len(steps) - 1:
            shutil.rmtree(target, ignore_errors=True)
            replay.write_out(str(root), target, mode, random_)
            check(target, said, f"step {number} of {len(steps)}, {step.call} {step.path}, {mode}")
    assert "four" in said


@pytest.mark.parametrize("mode", ["all", "synced", "empty", "some"])
def test_power_cuts(cuts: tuple[Path, list[Step]], quick_path: Path, mode: str) -> None:
    check_cuts(cuts, quick_path / "after", 11, mode)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", ["all", "synced", "empty", "some"])
def test_power_cuts_at_every_point(
    cuts: tuple[Path, list[Step]], quick_path: Path, mode: str, seed: int
) -> None:
    if mode != "some" and seed:
        pytest.skip("the same for every seed")
    check_cuts(cuts, quick_path / "after", 1, mode, seed)
