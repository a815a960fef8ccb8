"""Bytes that a deploy of one edit moves, for images that `docker build` made of others' languages:
with docker's layers as they are, and after `layerkit split`.

Docker's bytes are the new version's layers that the old one has not, as gzip -6, which is what
`docker push` sends and `docker pull` gets. Split's are the same of the new image, pulled plainly;
and what a node with the old version really moves from a chunk server, all documents included.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import foreign
from build import build_workload

from layerkit.edges.disk import Disk
from layerkit.edges.imagesource import OpenImage, Places, open_image
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.formats import oci
from layerkit.formats.deflate import compression_by_name, decompress
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import pull
from layerkit.jobs.serve import start
from layerkit.jobs.split import split

Table = dict[str, Any]
AMD64 = oci.Platform("linux", "amd64")
LIMIT = 1 << 32
WAIT = 30.0  # seconds for an engine to start


def binaries(version: int) -> Mapping[str, bytes]:
    """A server that changes, and a worker that does not and has its symbols."""
    server = build_workload("base" if version == 1 else "a_literal")
    return {"server": server.binary, "worker": build_workload("f2").named}


@contextlib.contextmanager
def docker_engine() -> Iterator[str]:
    """A dockerd with everything of its own; its address. Needs root."""
    with tempfile.TemporaryDirectory(prefix="lk-bench-", ignore_cleanup_errors=True) as name:
        address = f"unix://{name}/docker.sock"
        argv = ["unshare", "--mount", "--propagation", "private", "dockerd"]
        argv += ["--data-root", f"{name}/data", "--exec-root", f"{name}/exec"]
        argv += ["--pidfile", f"{name}/pid", "-H", address, "--bridge=none", "--iptables=false"]
        argv += ["--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
        argv += ["--storage-driver", "overlay2", "--cgroup-parent", "layerkit"]
        argv += ["--exec-opt", "native.cgroupdriver=cgroupfs"]
        with (Path(name) / "log").open("wb") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + WAIT
            while docker(address, "version") != 0:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise foreign.MissingError("dockerd does not start here")
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def docker(address: str, *argv: str) -> int:
    env = os.environ | {"DOCKER_BUILDKIT": "0"}
    return subprocess.run(
        ["docker", "-H", address, *argv], env=env, stdout=subprocess.DEVNULL, check=False
    ).returncode


def measure() -> Table:
    """A row for each language and layout."""
    table: Table = {}
    with docker_engine() as address:
        for kind in foreign.APPS:
            table[kind] = {}
            for layout in foreign.LAYOUTS:
                try:
                    table[kind][layout] = _measure(address, kind, layout)
                except foreign.MissingError as exc:
                    table[kind][layout] = {"missing": str(exc)}
                print(f"split {kind}, {layout}: {table[kind][layout]}", file=sys.stderr)
    return table


def _measure(address: str, kind: str, layout: str) -> Table:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = Places(folder, docker=address)
        cut, plain = Layout(folder / "cut"), []
        for version in (1, 2):
            context, tag = folder / f"context-{version}", f"{kind}:v{version}"
            foreign.make_context(kind, context, version, layout, binaries=binaries(version))
            if docker(address, "build", "-q", "--network", "none", "-t", tag, str(context)) != 0:
                raise foreign.MissingError(f"docker cannot build {tag}")
            with open_image(f"docker-daemon:{tag}", places) as found:
                plain.append(_layer_sizes(found))
                recipe = compression_by_name("gzip")
                split(found.source, found.top, Reference.parse(tag), cut, recipe=recipe)
        old, new = (_blob_sizes(cut, Reference.parse(f"{kind}:v{n}")) for n in (1, 2))
        return {
            "image": sum(plain[1].values()),
            "docker": sum(size for one, size in plain[1].items() if one not in plain[0]),
            "split": sum(size for one, size in new.items() if one not in old),
            "layerkit": _pull(folder, kind),
        }


def _layer_sizes(image: OpenImage) -> dict[str, int]:
    """Bytes of each layer as docker would push it, by the digest of its plain tar."""
    manifest = oci.parse_manifest(image.source.read_blob(image.top))
    sizes = {}
    for blob in manifest.layers:
        packer = zlib.compressobj(6, wbits=16 + zlib.MAX_WBITS)
        data = decompress(image.source.read_blob(blob), blob.media_type, LIMIT)
        sizes[str(blob.digest)] = len(packer.compress(data)) + len(packer.flush())
    return sizes


def _blob_sizes(layout: Layout, ref: Reference) -> dict[str, int]:
    manifest = layout.read_manifest(layout.resolve(ref).digest)
    return {str(blob.digest): blob.size for blob in manifest.layers}


def _pull(folder: Path, kind: str) -> int:
    """What a node that has the old version moves for the new one."""
    with start(folder / "cut") as server, Store(folder / "store", Disk()) as store:
        for version in (1, 2):
            with Remote(server.url) as remote:
                ref = Reference.parse(f"{kind}:v{version}")
                found = pull(ref, remote, store, platform=AMD64, fewest_bytes=True)
    return found.moved_size
