"""Memory of a node: peaks of pulls of a large binary, and of an agent that has nothing to do.

Each pull runs in a process of its own, interpreter and libraries included: VmHWM of
/proc/PID/status. The binaries are two releases of a real server.

python bench/memory.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from build import Built, build_release

from layerkit.digest import sha256_digest
from layerkit.edges.layout import Layout
from layerkit.formats import deflate, image, layer, oci
from layerkit.formats.addressfree import read_hints
from layerkit.formats.elf import parse_elf
from layerkit.formats.reference import Reference
from layerkit.jobs.serve import start

Table = dict[str, Any]
MODULE, PACKAGE = "github.com/distribution/distribution/v3", "./cmd/registry"
RELEASES = ("v3.1.0", "v3.1.1")
AGENT_SECONDS = 8.0  # for the first pull, the rebuilt form and the spare tree; then it is idle
NODE = """
import sys
from pathlib import Path
from layerkit.edges.disk import Disk
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.formats.oci import parse_platform
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import pull, rebuild_forms

url, ref, path, way = sys.argv[1:]
ref, machine = Reference.parse(ref), parse_platform("linux/amd64")
with Store(Path(path), Disk()) as store, Remote(url) as remote:
    if way == "rebuild":
        assert rebuild_forms(ref, remote, store, platform=machine)
    else:
        if way == "plain":  # a line and a machine on which plain blobs are quickest
            store.put_fact(f"line/{url[7:]}/bandwidth", "1e10")
            store.put_fact("rate/blob", "1e11")
            for name in ("form", "packed", "chunks", "update"):
                store.put_fact(f"rate/{name}", "1e3")
        result = pull(ref, remote, store, platform=machine, rootfs=Path(path + "-root"),
                      fewest_bytes=way != "plain")
        assert (result.plain_count > 0) == (way == "plain")
with open("/proc/self/status") as file:
    print(next(line for line in file if line.startswith("VmHWM")).split()[1])
"""


def measure() -> Table:
    """Peaks in bytes by way, and the agent's memory after a pull."""
    built = [build_release(MODULE, PACKAGE, version) for version in RELEASES]
    with tempfile.TemporaryDirectory(prefix="lk-memory-") as name:
        folder = Path(name)
        for number, one in enumerate(built, 1):
            _publish(folder / "layout", f"big:v{number}", one)
        with start(folder / "layout") as server:
            peaks = {
                "first pull": _peak(server.url, "big:v1", folder / "node", "bytes"),
                "update": _peak(server.url, "big:v2", folder / "node", "bytes"),
                "plain pull": _peak(server.url, "big:v1", folder / "other", "plain"),
                "form made again": _peak(server.url, "big:v1", folder / "other", "rebuild"),
            }
            idle = _idle(server.url, folder)
    sizes = [len(one.binary) for one in built]
    table = {"case": f"{MODULE} {' -> '.join(RELEASES)}", "binary_sizes": sizes}
    return table | {"peaks": peaks, "agent": idle}


def _publish(path: Path, ref: str, built: Built) -> None:
    hints = {sha256_digest(built.binary): read_hints(parse_elf(built.named))}
    recipe = deflate.compression_by_name("gzip")
    code = image.pack_layer(layer.CODE, layer.code_entries("big", built.binary), recipe, "code")
    settings = image.ImageSettings(oci.Platform("linux", "amd64"), ("/app/big",), "")
    packed = image.pack_image([code], settings)
    artifact = image.pack_chunks_artifact(packed, hints)
    layout = Layout(path)
    with layout.batch():
        for blob in (*packed.blobs(), *artifact):
            layout.put_blob(blob.data, blob.descriptor.media_type)
        layout.commit(Reference.parse(ref), packed.manifest.descriptor, [artifact[-1].descriptor])


def _peak(url: str, ref: str, store: Path, way: str) -> int:
    argv = [sys.executable, "-c", NODE, url, ref, str(store), way]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout) << 10


def _idle(url: str, folder: Path) -> Table:
    """Resident bytes of an agent that has pulled the binary: its own, and those of both of its
    processes with what they share counted once (PSS)."""
    argv = [sys.executable, "-m", "layerkit", "agent", "--server", url, "--watch", "big:v1"]
    argv += ["--store", str(folder / "agent"), "--rootfs", str(folder / "versions")]
    argv += ["--socket", str(folder / "a.sock"), "--platform", "linux/amd64", "-q"]
    with subprocess.Popen(argv, start_new_session=True) as agent:
        try:
            end = time.monotonic() + 120
            while not (folder / "versions" / "big" / "current").exists():
                if time.monotonic() > end or agent.poll() is not None:
                    raise SystemExit("the agent does not pull")
                time.sleep(0.2)
            time.sleep(AGENT_SECONDS)
            pids = [agent.pid, *_children(agent.pid)]
            own = _field(agent.pid, "status", "VmRSS")
            shared = sum(_field(pid, "smaps_rollup", "Pss") for pid in pids)
            return {"own": own, "all": shared, "process_count": len(pids)}
        finally:
            agent.terminate()


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in found]


def _field(pid: int, file: str, name: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) << 10


if __name__ == "__main__":
    os.nice(5)
    print(json.dumps(measure(), indent=2))
