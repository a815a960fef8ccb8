"""The plan of a pull: what will be fetched, and how. Pure: have x want -> fetches.

It neither knows a server nor a store. `jobs/pull` carries it out. Spec: docs/design.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest
from layerkit.formats.chunkmanifest import Chunk, ChunkManifest
from layerkit.formats.oci import Descriptor

__all__ = ["LayerPlan", "LayerWant", "Plan", "plan_pull"]

CHUNK_COST: Final = 6  # bytes on the wire for each chunk of a batch: place up, mark and size down
LOOSE: Final = 1.15  # chunks compress this much worse than the whole form (measured)


@dataclass(frozen=True, slots=True)
class LayerWant:
    """A layer of the wanted image, and how its bytes can be had."""

    blob: Descriptor
    diff_id: Digest
    chunk_manifest: ChunkManifest | None = None  # None: not known yet, or the server has none
    form: Descriptor | None = None
    listed: Descriptor | None = None  # the published chunk manifest
    packed: Descriptor | None = None  # the form in fewer bytes, where it was published so
    is_packed: bool = False  # or where the server says that it has it

    @property
    def form_size(self) -> int:
        """Bytes that the whole form moves, at most; there is one."""
        assert self.form is not None
        return min(self.form.size, self.packed.size) if self.packed else self.form.size


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one layer is had: `held`, by `chunks`, its whole `form`, or the plain `blob`."""

    want: LayerWant
    method: str
    chunks: tuple[Chunk, ...]  # those that the node lacks, each once
    planned_size: int  # bytes on the wire, estimated for chunks, else exact


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pull will fetch. `whole_size` is what a plain pull would move."""

    layers: tuple[LayerPlan, ...]
    fetch_count: int
    held_count: int
    planned_size: int
    whole_size: int


def plan_pull(wants: Sequence[LayerWant], have: Collection[Digest]) -> Plan:
    """Decide for each layer how to get it; pure. `have` are ids of chunks that the node holds."""
    seen = set(have)
    layers = []
    held_count = fetch_count = 0
    for want in wants:
        manifest = want.chunk_manifest
        if manifest is None:  # nothing near is held: whole, and no ids travel
            method, size = ("form", want.form_size) if want.form else ("blob", want.blob.size)
            layers.append(LayerPlan(want, method, (), size))
            continue
        missing = []
        for chunk in manifest.chunks:
            if chunk.id not in seen:
                seen.add(chunk.id)
                missing.append(chunk)
        held_count += len(manifest.chunks) - len(missing)
        fetch_count += len(missing)
        layers.append(_plan_layer(want, manifest, tuple(missing)))
    return Plan(
        tuple(layers),
        fetch_count,
        held_count,
        sum(layer.planned_size for layer in layers),
        sum(want.blob.size for want in wants),
    )


def _plan_layer(want: LayerWant, manifest: ChunkManifest, missing: tuple[Chunk, ...]) -> LayerPlan:
    if not missing:
        return LayerPlan(want, "held", (), 0)
    size = sum(chunk.size for chunk in missing)
    if want.form is None:
        return LayerPlan(want, "chunks", missing, size + CHUNK_COST * len(missing))
    ratio = min(1.0, LOOSE * want.form.size / max(1, manifest.form_size))
    chunks_size = int(size * ratio) + CHUNK_COST * len(missing)
    if chunks_size < want.form_size:
        return LayerPlan(want, "chunks", missing, chunks_size)
    return LayerPlan(want, "form", missing, want.form_size)


def batch_chunks(chunks: Iterable[Chunk], count: int, size: int) -> Iterator[list[Chunk]]:
    """Split into requests of at most `count` ids and about `size` bytes; each id once."""
    batch: list[Chunk] = []
    total = 0
    for chunk in {chunk.id: chunk for chunk in chunks}.values():
        if batch and (len(batch) >= count or total + chunk.size > size):
            yield batch
            batch, total = [], 0
        batch.append(chunk)
        total += chunk.size
    if batch:
        yield batch
