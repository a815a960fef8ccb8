"""Chunks out of a pack: for a node that holds something near, from a place that cuts no chunks.

The pack's index says in which frames the missing chunks are; these come by ranges, near ones with
one request. Memory: the index, and one frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

from layerkit.digest import Digest
from layerkit.edges.upstream import Upstream
from layerkit.errors import FormatError, NotFoundError
from layerkit.formats.chunkpack import parse_pack_index, read_frame
from layerkit.formats.plan import LayerWant

__all__ = ["read_packed_chunks"]


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
