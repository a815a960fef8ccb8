"""Servers and agents for an hour: versions come and go, agents keep two, one of them is killed and
ended, a server restarts, nodes pull and collect. File handles, memory and disk are sampled all the
time; a slope above its limit is a leak, and the run fails.

python bench/soak.py --seconds 3600          (prints a JSON document; exit status 1 for a leak)

The first third warms up and is not judged. The rest is cut into twelve parts, and a line fitted to
the least sample of each: what a pull takes for a moment does not count, and what stays does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from contest import serve_argv, wait_for
from netns import end
from slopes import judge
from versions import AMD64, SETTINGS, pack_code, put

from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.formats import image, oci
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import pull
from layerkit.jobs.verify import verify_store

BENCH = Path(__file__).resolve().parent
Table = dict[str, Any]
NAME = "functions/soak"
AGENTS = ("agent", "restless agent")
BINARY_SIZE = 1_000_000
KEPT = 4  # versions in the layout
PERIOD = 2.0  # seconds between two versions
SAMPLE_SECONDS = 0.25


@dataclass
class Watched:
    """A process, or a folder, by what is sampled of it."""

    name: str
    kind: str
    read: Callable[[], float]


def handles_of(pid: int) -> float:
    return float(len(os.listdir(f"/proc/{pid}/fd")))


def memory_of(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return float(pages * os.sysconf("SC_PAGESIZE"))


def size_of(folder: Path) -> float:
    """Bytes on disk, each file once however many names it has."""
    seen: dict[tuple[int, int], int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(root, name))
            except OSError:
                continue  # it went meanwhile
            seen[(found.st_dev, found.st_ino)] = found.st_blocks * 512
    return float(sum(seen.values()))


class Sampler:
    """Samples all that is watched, from a thread, until it is stopped."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        self.times: list[float] = []
        self.values: dict[str, list[float]] = {f"{one.name}, {one.kind}": [] for one in watched}
        self._watched = watched
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.times.append(time.monotonic())
            for one in self._watched:
                self.values[f"{one.name}, {one.kind}"].append(one.read())

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class Soak:
    """Two servers over one layout and two agents: a steady pair, which is judged and asks the
    restless server first; and a restless one. All in one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.layout = folder / "layout"
        self.counts = dict.fromkeys(
            ("versions", "pulls", "gcs", "agent restarts", "kills", "server restarts"), 0
        )
        self._chance = random.Random(seed)
        self._binary = bytearray(self._chance.randbytes(BINARY_SIZE))
        self.publish()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.urls: dict[str, str] = {}
        for name in ("server", "restless server"):
            self._start_server(name, 0)
        for name in ("agent", "restless agent"):
            self._start_agent(name)

    # --- parts -------------------------------------------------------------------------------

    def _start(self, name: str, *argv: str) -> str:
        """Start a layerkit process; the line that it says when it is ready."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "layerkit", *argv],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | {"PYTHONPATH": str(BENCH.parent)},
            )
        self.processes[name] = process
        assert process.stdout is not None
        said = process.stdout.readline().decode().strip()
        if not said:
            raise OSError(f"{name}: {log.read_text('utf-8', 'replace')[-2000:]}")
        return said

    def _start_server(self, name: str, port: int) -> None:
        argv = serve_argv(self.layout, f"127.0.0.1:{port}")[3:]
        made = ["--made", str(self.folder / "made"), "--made-size", "32M", "--memory", "16M"]
        self.urls[name] = self._start(name, *argv, *made)

    def _start_agent(self, name: str) -> None:
        home = self.folder / name
        argv = ["--store", f"{home}/store", "--rootfs", f"{home}/rootfs", "--keep", "2"]
        argv += ["--socket", str(self.folder / f"{name[:8]}.sock"), "--watch", NAME]
        for server in ("restless server", "server"):
            argv += ["--server", self.urls[server]]
        self._start(name, "agent", *argv)

    def watched(self) -> list[Watched]:
        """What is judged."""
        found = []
        for name in ("server", "agent"):
            pid = self.processes[name].pid
            found.append(Watched(name, "handles", partial(handles_of, pid)))
            found.append(Watched(name, "memory", partial(memory_of, pid)))
        found.append(Watched("pulls", "handles", partial(handles_of, os.getpid())))
        for name in ("agent", "restless agent", "node", "made"):
            found.append(Watched(name, "disk", partial(size_of, self.folder / name)))
        return found

    # --- what happens ------------------------------------------------------------------------

    def publish(self) -> None:
        """A new version with a few edits; what is older than KEPT goes."""
        for _ in range(3):
            at = self._chance.randrange(BINARY_SIZE - 64)
            self._binary[at : at + 64] = self._chance.randbytes(64)
        self.counts["versions"] += 1
        number = self.counts["versions"]
        packed = image.pack_image([pack_code(bytes(self._binary))], SETTINGS)
        refs = [Reference.parse(f"{NAME}:{tag}") for tag in (f"v{number}", "latest")]
        put(Layout(self.layout), refs, packed, {})
        prune(self.layout, {f"v{one}" for one in range(number - KEPT + 1, number + 1)} | {"latest"})

    def pull(self) -> None:
        """Another node, in this process: pull the newest, forget the others, collect."""
        self.counts["pulls"] += 1
        ref = Reference.parse(f"{NAME}:latest")
        with Remote(self.urls["server"]) as remote, Store(self.folder / "node", Disk()) as store:
            pull(ref, remote, store, platform=AMD64, rootfs=self.folder / "root")
            if self._chance.random() < 0.5:
                self.counts["gcs"] += 1
                store.gc()

    def restart_agent(self) -> None:
        kill = self._chance.random() < 0.5
        self.counts["kills" if kill else "agent restarts"] += 1
        process = self.processes["restless agent"]
        if kill:
            process.kill()
        end(process, 30)
        self._start_agent("restless agent")

    def restart_server(self) -> None:
        self.counts["server restarts"] += 1
        port = int(self.urls["restless server"].rpartition(":")[2])
        end(self.processes["restless server"], 30)
        self._start_server("restless server", port)

    def is_current(self) -> bool:
        """Has every agent the newest version?"""
        digest = Layout(self.layout).resolve(Reference.parse(f"{NAME}:latest")).digest
        links = [self.folder / name / "rootfs" / NAME / "current" for name in AGENTS]
        return all(link.is_symlink() and digest.hex in os.readlink(link) for link in links)

    def close(self) -> None:
        for process in reversed(self.processes.values()):
            end(process, 30)


def prune(path: Path, tags: set[str]) -> None:
    """Take from a layout all tags of our name but these, and what only they needed."""
    index = json.loads((path / "index.json").read_bytes())
    name = oci.ANNOTATION_REF_NAME
    kept = [one for one in index["manifests"] if one.get("annotations", {}).get(name)]
    kept = [one for one in kept if one["annotations"][name].rpartition(":")[2] in tags]
    images = {one["digest"] for one in kept}
    needed = set(images)
    for one in index["manifests"]:
        document = json.loads(_blob(path, one["digest"]).read_bytes())
        subject = document.get("subject", {}).get("digest")
        if one not in kept and subject in images:
            kept.append(one)
        if one in kept:
            parts = [document["config"], *document["layers"]]
            needed |= {one["digest"], *(part["digest"] for part in parts)}
    disk = Disk()
    disk.write_atomic(path / "index.json", json.dumps(index | {"manifests": kept}).encode())
    for blob in (path / "blobs/sha256").iterdir():
        if f"sha256:{blob.name}" not in needed:
            blob.unlink()


def _blob(path: Path, digest: str) -> Path:
    return path / "blobs" / digest.replace(":", "/")


def run(seconds: float, folder: Path, seed: int = 1) -> Table:
    """Versions every PERIOD seconds, something else each time; the samples and the verdicts."""
    soak = Soak(folder, seed)
    started = time.monotonic()
    sampler = Sampler(soak.watched())
    try:
        try:
            play(soak, seconds)
        finally:
            sampler.stop()
        settled = wait_for(soak.is_current)
    finally:
        soak.close()
    stores = [*(folder / name / "store" for name in AGENTS), folder / "node"]
    whole = all(verify_store(store, Disk()).good for store in stores)
    rows = {name: judge(name, sampler.times, values) for name, values in sampler.values.items()}
    return {
        "seconds": round(time.monotonic() - started),
        "counts": soak.counts,
        "rows": rows,
        "settled": settled,
        "whole": whole,
        "good": settled and whole and all(row["good"] for row in rows.values()),
    }


def play(soak: Soak, seconds: float) -> None:
    turn, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        began = time.monotonic()
        turn += 1
        soak.publish()
        soak.pull()
        if turn % 5 == 0:
            soak.restart_agent()
        if turn % 7 == 0:
            soak.restart_server()
        for name, process in soak.processes.items():
            if process.poll() is not None:
                raise OSError(f"{name} ended by itself with {process.returncode}")
        time.sleep(max(0.0, PERIOD - (time.monotonic() - began)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lk-soak-") as folder:
        found = run(options.seconds, Path(folder), options.seed)
    print(json.dumps(found, indent=1))
    sys.exit(0 if found["good"] else 1)


if __name__ == "__main__":
    main()
