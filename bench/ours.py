"""What layerkit makes of a binary: its form, deltas, chunks. Kept under bench/work by the digest of
layerkit's formats, so that a second run measures only what changed.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import zstandard
from build import WORK, Built
from pyfastcdc import FastCDC

from layerkit.digest import chunk_id, sha256_digest
from layerkit.formats import addressfree, delta, formpack
from layerkit.formats.chunkmanifest import (
    ChunkManifest,
    build_chunk_manifest,
    serialize_chunk_manifest,
)
from layerkit.formats.chunksync import (
    Have,
    chunk_places,
    gone_chunks,
    serialize_change,
    serialize_have,
)
from layerkit.formats.elf import parse_elf
from layerkit.formats.layerform import PART_BINARY, join_parts
from layerkit.formats.protocol import serialize_chunk_batch

FORMATS = Path(addressfree.__file__).parent.parent


@cache
def formats_key() -> str:
    """Digest of the code that decides forms and deltas."""
    key = hashlib.sha256()
    for path in sorted(FORMATS.rglob("*.py")):
        key.update(path.name.encode() + path.read_bytes())
    return key.hexdigest()[:16]


def forget_old_versions() -> None:
    """Drop what other versions of the formats made, but for the last hour's (in use)."""
    for folder in (WORK / "ours").glob("*"):
        if folder.name != formats_key() and folder.stat().st_mtime < time.time() - 3600:
            shutil.rmtree(folder, ignore_errors=True)


def _cached(what: str, inputs: Sequence[bytes], make: Callable[[], bytes]) -> bytes:
    key = hashlib.sha256(what.encode())
    for data in inputs:
        key.update(hashlib.sha256(data).digest())
    folder = WORK / "ours" / formats_key()
    path = folder / key.hexdigest()[:32]
    if not path.exists():
        made = make()
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made)
        return made
    return path.read_bytes()


def form_of(built: Built) -> bytes:
    """The form, with the names of the link, as `layerkit build` makes it."""

    def make() -> bytes:
        made = addressfree.encode(built.binary, addressfree.read_hints(parse_elf(built.named)))
        assert not made.why_raw, f"{built.name}: {made.why_raw}"
        return made.form

    return _cached("named", [built.named], make)


def bare_form_of(built: Built) -> bytes:
    """The form of the stripped binary alone, as of somebody else's build."""
    return _cached("bare", [built.binary], lambda: addressfree.encode(built.binary).form)


def delta_of(olds: Sequence[bytes], new: bytes) -> bytes:
    return _cached("delta", [*olds, new], lambda: delta.diff(olds, new))


def zstd19(data: bytes) -> int:
    made = _cached("zstd19", [data], lambda: zstandard.ZstdCompressor(level=19).compress(data))
    return len(made)


def xz(data: bytes) -> int:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 26}]
    return len(
        _cached(
            "lzma", [data], lambda: lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters)
        )
    )


def chunk_manifest(form: bytes) -> ChunkManifest:
    return build_chunk_manifest(form, "address-free", sha256_digest(form), len(form), 3)


def packed(form: bytes) -> int:
    """Bytes of the packed form of a layer that holds but this binary."""
    return len(_cached("packed", [form], lambda: formpack.pack(join_parts([(PART_BINARY, form)]))))


def chunks_moved(olds: Sequence[bytes], new: bytes) -> dict[str, int]:
    """What goes to and fro chunk by chunk: the change of the chunk manifest, for a node that names
    up to eight; and the missing chunks by their places, with what the nearest old form has there as
    dictionary. Beside it the missing chunks as a zstd -19 frame of their own."""
    before, manifest = [chunk_manifest(old) for old in olds], chunk_manifest(new)
    raw_ids, starts = manifest.list_raw_ids(), manifest.offsets()
    held = {raw for old in before for raw in old.list_raw_ids()}
    missing: dict[bytes, int] = {}
    for index, raw in enumerate(raw_ids):
        if raw not in held:
            missing.setdefault(raw, index)
    chunks = [new[starts[index] : starts[index + 1]] for index in missing.values()]
    named = {sha256_digest(raw): raw for raw in map(serialize_chunk_manifest, before[:8])}
    change = serialize_change(serialize_chunk_manifest(manifest), named)
    wanted = set(raw_ids)
    shared = [len(wanted & set(old.list_raw_ids())) for old in before]
    near = max(range(len(olds)), key=lambda index: (shared[index], -index))
    gone = [olds[near][at : at + size] for at, size in gone_chunks(before[near], manifest)]
    batch = serialize_chunk_batch(chunks, len(chunks), 19, b"".join(gone))
    places = chunk_places(missing.values())
    return {
        "manifest": len(serialize_have(Have(tuple(named)))) + len(change),
        "chunks": len(places) + sum(map(len, batch)),
        "own_frame": zstd19(b"".join(chunks)),
        "missing_count": len(missing),
        "count": len(raw_ids),
    }


def chunks_moved_at(olds: Sequence[bytes], new: bytes, average: int) -> int:
    """The same for another average size: bytes of both parts, 37 bytes a chunk in the manifest."""
    cutter = FastCDC(average, min_size=average // 4, max_size=average * 8, seed=0)
    lists = [[bytes(c.data) for c in cutter.cut_buf(form)] for form in (*olds, new)]
    held = {chunk for chunks in lists[:-1] for chunk in chunks}
    missing = dict.fromkeys(chunk for chunk in lists[-1] if chunk not in held)
    before, after = (
        b"".join(len(c).to_bytes(4, "little") + chunk_id(c).raw + b"\3" for c in chunks)
        for chunks in (lists[0], lists[-1])
    )
    return zstd19(b"".join(missing)) + len(delta_of([before], after))
