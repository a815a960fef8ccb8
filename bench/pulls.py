"""First pulls as the product does them: a real server, a real node, in one process.

The functions are published into a layout under bench/work as `layerkit build --pack` would, a store
is filled with the others by pulling them, and each wanted function is pulled onto a copy of that
store, and onto an empty one.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import ours
from build import WORK, build_workload

from layerkit.digest import sha256_digest
from layerkit.edges import held
from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.sources import read_base
from layerkit.edges.store import Store
from layerkit.formats import addressfree, formpack, image, layer, oci
from layerkit.formats.deflate import compression_by_name
from layerkit.formats.elf import parse_elf
from layerkit.formats.layerform import decode_layer
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import PullResult, pull
from layerkit.jobs.serve import start

AMD64 = oci.Platform("linux", "amd64")
ROUNDS = 5


def publish(names: Sequence[str], packs: Collection[str]) -> Path:
    """A layout of these functions, each in a repository of its own, those of `packs` with packed
    forms; made once for a version of the formats."""
    path = WORK / "ours" / ours.formats_key() / "layout"
    layout, recipe = Layout(path), compression_by_name("gzip")
    entries, made_from = read_base()
    base = image.pack_layer(layer.BASE, entries, recipe, made_from)
    tags = layout.tags() if layout.exists() else {}
    for name in names:
        ref = reference(name)
        if str(ref) in tags:
            continue
        built = build_workload(name)
        code = image.pack_layer(
            layer.CODE, layer.code_entries("fn", built.binary, []), recipe, "layerkit code"
        )
        packed = image.pack_image([base, code], image.ImageSettings(AMD64, ("/app/fn",), "65532"))
        hints = {sha256_digest(built.binary): addressfree.read_hints(parse_elf(built.named))}
        artifact = image.pack_chunks_artifact(packed, hints, name in packs)
        with layout.batch():
            for blob in (*packed.blobs(), *artifact):
                layout.put_blob(blob.data, blob.descriptor.media_type)
            layout.commit(ref, packed.manifest.descriptor, [artifact[-1].descriptor])
    return path


def reference(name: str) -> Reference:
    return Reference.parse(f"functions/{name.lower()}:v1")


def _pull(url: str, name: str, store: Path) -> tuple[PullResult, int]:
    """Pull, and the bytes of the names of images that went up with the request."""
    ref = reference(name)
    with Remote(url) as remote, Store(store, Disk()) as opened:
        named = sum(len(str(digest)) + 1 for digest in held.list_held(opened, ref))
        return pull(ref, remote, opened, platform=AMD64), named


def measure(wanted: Sequence[str], others: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each function: what moves onto an empty node and onto one that holds the others, requests
    and seconds (on the held one the first includes the making of the delta); and the seconds that
    unpacking and decoding take."""
    layout = publish([*others, *wanted], wanted)
    table: dict[str, dict[str, Any]] = {}
    with start(layout) as server, tempfile.TemporaryDirectory() as scratch:
        full = Path(scratch) / "full"
        for name in others:
            _pull(server.url, name, full)
        for name in wanted:
            empty, _ = _pull(server.url, name, Path(scratch) / f"{name}-empty")
            stores = [Path(scratch) / f"{name}-{turn}" for turn in range(2)]
            for store in stores:
                shutil.copytree(full, store)
            first, named_size = _pull(server.url, name, stores[0])
            again, _ = _pull(server.url, name, stores[1])
            table[name] = {
                "empty": _row(empty),
                "held": _row(first) | {"named_size": named_size, "kept_seconds": again.seconds},
                "unpack": _unpack_times(layout, name),
            }
    return table


def _row(result: PullResult) -> dict[str, Any]:
    return {
        "moved_size": result.moved_size,
        "request_count": result.request_count,
        "seconds": result.seconds,
    }


def _unpack_times(path: Path, name: str) -> dict[str, float]:
    """Seconds from the packed form of the code layer to its tar, warm, medians."""
    layout = Layout(path)
    image_digest = layout.resolve(reference(name)).digest
    packed = [
        blob
        for entry in layout.referrers(image_digest)
        for blob in layout.read_manifest(entry.digest).layers
        if blob.media_type == formpack.PACKED_TYPE
    ]
    raw = layout.read_blob(max(packed, key=lambda blob: blob.size))
    form = formpack.unpack(raw)
    return {
        "unpack": _median(lambda: formpack.unpack(raw)),
        "decode": _median(lambda: decode_layer(form, None)),
    }


def _median(call: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
