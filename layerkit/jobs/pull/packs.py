"""Chunks out of a pack: for a node that holds something near, from a place that cuts no chunks.

Of the chunk manifest the root comes, and the runs that the node does not hold. The pack's index
says in which frames the missing chunks are; these come by ranges, near ones with one request.
Memory: the chunk manifest, the index, and one frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Final

from layerkit.digest import Digest, check_digest
from layerkit.edges.upstream import Upstream
from layerkit.errors import FormatError, NotFoundError
from layerkit.formats.chunkmanifest import CHUNK, join_runs, parse_root, split_runs
from layerkit.formats.chunkpack import parse_pack_index, read_frame
from layerkit.formats.oci import Descriptor
from layerkit.formats.plan import LayerWant

__all__ = ["MIN_PARTED_SIZE", "read_chunk_manifest", "read_packed_chunks"]

MIN_PARTED_SIZE: Final = 64 << 10  # bytes of a chunk manifest that more than one request pays for
ROOT_PART: Final = 24  # a root is a 33rd of its chunk manifest: more than that is asked for,
ROOT_SLACK: Final = 1024  # and this many bytes


def read_chunk_manifest(
    remote: Upstream, name: str, listed: Descriptor, near: Iterable[bytes]
) -> bytes:
    """A published chunk manifest, verified, of which only the root and such runs come that those of
    `near` lack. Raises FormatError, IntegrityError and NotFoundError where that does not work."""
    size, what = listed.size, f"chunk manifest {listed.digest.short}"
    start = remote.read_start(name, listed.digest, size // ROOT_PART + ROOT_SLACK, size)
    data = start if len(start) == size else _add_runs(remote, name, listed, start, near)
    check_digest(data, listed.digest, what)
    return data


def _add_runs(
    remote: Upstream, name: str, listed: Descriptor, start: bytes, near: Iterable[bytes]
) -> bytes:
    """The whole of which `start` came. Each run is checked by its id, wherever it is from."""
    root = parse_root(start)
    root_size = listed.size - root.chunk_count * CHUNK.size
    if not 0 < root_size <= len(start):
        raise FormatError(f"chunk manifest {listed.digest.short} has another size")
    held: dict[bytes, bytes] = {}
    for old, bodies in map(split_runs, near):
        held.update((run_id, body) for (run_id, _), body in zip(old.runs, bodies, strict=True))
    runs: list[bytes | None] = []
    ranges: list[tuple[int, int]] = []
    at = root_size
    for run_id, count in root.runs:
        end = at + count * CHUNK.size
        runs.append(start[at:end] if end <= len(start) else held.get(run_id))
        if runs[-1] is None:
            ranges.append((at, end - at))
        at = end
    parts = remote.read_ranges(name, listed.digest, ranges)
    return join_runs(start[:root_size], [next(parts) if run is None else run for run in runs])


def read_packed_chunks(
    remote: Upstream, name: str, want: LayerWant, wanted: Set[bytes]
) -> Iterator[tuple[Digest, bytes]]:
    """The chunks of a layer with these raw ids, verified, as they come. Raises FormatError,
    IntegrityError and NotFoundError for a pack that is not what it should be."""
    manifest = want.chunk_manifest
    assert manifest is not None and want.pack is not None and want.pack_index is not None
    raw = remote.fetch_blob(name, want.pack_index.digest, want.pack_index.size)
    frames = parse_pack_index(raw, manifest).find_frames(wanted, manifest)
    if frames and frames[-1].offset + frames[-1].size > want.pack.size:
        raise FormatError(f"chunk pack {want.pack.digest.short} is shorter than its index says")
    ids = manifest.list_raw_ids()
    if wanted - {ids[place] for frame in frames for place in frame.places}:
        raise NotFoundError(f"chunk pack {want.pack.digest.short} lacks chunks of its layer")
    ranges = [(frame.offset, frame.size) for frame in frames]
    parts = remote.read_ranges(name, want.pack.digest, ranges)
    for frame, data in zip(frames, parts, strict=True):
        for chunk, plain in read_frame(data, frame, manifest):
            if chunk.raw in wanted:
                yield chunk, bytes(plain)
