"""The plan of a pull: what will be fetched, and how. Pure: have x want x rates -> fetches.

A layer comes as its plain blob, as its form (packed, if it was published so), by the chunks that
the node lacks, or inside an update. The fewest bytes win where the line is slow; where it is fast,
what the bytes cost to unpack counts, too: each way is given the seconds that it takes by what was
measured here (`Rates`), and the one of the fewest bytes is taken that is not slower than the
quickest by more than MARGIN.

It neither knows a server nor a store, and no clock. `jobs/pull` carries it out and measures.
Spec: docs/design.md "The planner".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from layerkit.digest import Digest
from layerkit.formats.chunkmanifest import Chunk, ChunkManifest
from layerkit.formats.oci import Descriptor

__all__ = [
    "METHODS",
    "LayerPlan",
    "LayerWant",
    "Plan",
    "Rates",
    "batch_chunks",
    "choose_method",
    "crossing_bandwidth",
    "plan_pull",
    "prefers_documents",
    "prefers_plain",
    "prefers_unpacked",
    "replan",
]

CHUNK_COST: Final = 6  # bytes on the wire for each chunk of a batch: place up, mark and size down
LOOSE: Final = 1.15  # chunks compress this much worse than the whole form (measured)
PACKED_PART: Final = 0.84  # of the form blob: a packed form whose size is not known (measured)
PLAIN_PART: Final = 2.5  # plain bytes of a byte of a layer blob, where one of the two is not known
MARGIN: Final = 0.05  # seconds that fewer bytes may cost: nobody notices, and the line is shared
UPDATE_MARGIN: Final = 0.25  # seconds that an update may take longer: it leaves no form to be made
TYPICAL_SIZES: Final = (2_400_000, 6_000_000)  # bytes of a function's code layer: blob, plain
TYPICAL_FORM: Final = 1_670_000  # bytes of its form
TYPICAL_PACKED: Final = 1_400_000  # bytes of its packed form
PLAIN_TRIPS: Final = 2  # round trips of a plain pull before its layers: manifest and config
BLOB, FORM, PACKED, CHUNKS, UPDATE = "blob", "form", "packed", "chunks", "update"
METHODS: Final = (BLOB, FORM, PACKED, CHUNKS, UPDATE)


LEAST_PATIENCE: Final = 0.5  # seconds: the delta of a small edit is made in less
MAX_PATIENCE: Final = 10.0
WORTH_WAITING: Final = 1 << 18  # bytes that a delta saves against chunks: 1 KB to 300 KB measured


@dataclass(frozen=True, slots=True)
class Rates:
    """What the line and this machine do. The defaults are those of a slow line and a slow machine:
    until something was measured, few bytes are best."""

    round_trip: float = 0.02  # seconds
    bandwidth: float = 1.25e6  # bytes a second: 10 Mbit/s
    # plain bytes a second of all work that a layer takes by each way: unpack, patch, decode, check,
    # cut, store. Half of what was measured on two cores of 2024
    blob: float = 30e6
    form: float = 20e6
    packed: float = 10e6
    chunks: float = 20e6
    update: float = 30e6

    @property
    def patience(self) -> float:
        """Seconds that it is worth to wait for a delta that is not made yet: what chunks in its
        place would cost at most on this line, as a rule."""
        return min(MAX_PATIENCE, max(LEAST_PATIENCE, WORTH_WAITING / self.bandwidth))

    def seconds(self, method: str, size: float, plain_size: float, trips: int = 1) -> float:
        """What `size` bytes on the wire, `trips` round trips and the work take."""
        rate: float = getattr(self, method)
        return trips * self.round_trip + size / self.bandwidth + plain_size / rate


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
    labels: Descriptor | None = None  # what makes the form of the plain tar
    has_chunks: bool = True  # can missing chunks be had one by one?
    pack: Descriptor | None = None  # where chunks are when nobody cuts them,
    pack_index: Descriptor | None = None  # and which of them are where

    @property
    def plain_size(self) -> float:
        """Bytes of the tar; a guess where they are not known."""
        if self.chunk_manifest is not None:
            return self.chunk_manifest.plain_size
        return PLAIN_PART * self.blob.size

    def unpacked(self) -> LayerWant:
        """The same without its packed form."""
        return replace(self, packed=None, is_packed=False)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one layer is had: `held`, by `chunks`, its whole `form`, `packed` or not, or the plain
    `blob`."""

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


def plan_pull(
    wants: Sequence[LayerWant],
    have: Collection[bytes],
    rates: Rates | None = None,
    whole: Collection[Digest] = (),
) -> Plan:
    """Decide for each layer how to get it; pure. `have` are raw ids of chunks that the node holds,
    `whole` diff_ids of layers of which it holds all; without `rates` only bytes count."""
    seen = set(have)
    layers = []
    held_count = fetch_count = 0
    for want in wants:
        manifest = want.chunk_manifest
        missing: list[Chunk] = []
        if manifest is not None:
            missing = [] if want.diff_id in whole else _missing_chunks(manifest, seen)
            held_count += len(manifest.sizes) - len(missing)
            fetch_count += len(missing)
        layers.append(_plan_layer(want, tuple(missing), rates))
    return Plan(
        tuple(layers),
        fetch_count,
        held_count,
        sum(layer.planned_size for layer in layers),
        sum(want.blob.size for want in wants),
    )


def _missing_chunks(manifest: ChunkManifest, seen: set[bytes]) -> list[Chunk]:
    """Chunks that are not in `seen`, each once; they are, from then on."""
    missing = []
    for size, raw in zip(manifest.sizes, manifest.list_raw_ids(), strict=True):
        if raw not in seen:
            seen.add(raw)
            missing.append(Chunk(size, Digest("b3", raw)))
    return missing


def _plan_layer(want: LayerWant, missing: tuple[Chunk, ...], rates: Rates | None) -> LayerPlan:
    if want.chunk_manifest is not None and not missing:
        return LayerPlan(want, "held", (), 0)
    ways = _ways(want, missing)
    method = choose_method(ways, want.plain_size, rates)
    chosen = want.unpacked() if method in (FORM, BLOB) else want
    return LayerPlan(chosen, method, missing, ways[method])


def _ways(want: LayerWant, missing: Sequence[Chunk]) -> dict[str, int]:
    """The ways in which a layer can come, and the bytes of each."""
    ways = {BLOB: want.blob.size}
    if want.form is not None:
        ways[FORM] = want.form.size
        if want.packed is not None:
            ways[PACKED] = want.packed.size
        elif want.is_packed:
            ways[PACKED] = int(PACKED_PART * want.form.size)
    manifest = want.chunk_manifest
    if manifest is not None and want.has_chunks:
        size = sum(chunk.size for chunk in missing)
        if want.form is not None:
            size = int(size * min(1.0, LOOSE * want.form.size / max(1, manifest.form_size)))
        ways[CHUNKS] = size + CHUNK_COST * len(missing)
        if want.form is None:
            del ways[BLOB]  # the chunks are all that there is of the form; the blob is the last way
    return ways


def choose_method(ways: dict[str, int], plain_size: float, rates: Rates | None) -> str:
    """Of ways and their bytes the one with the fewest that is hardly slower than the quickest. Of
    equal ones the form wins: it can be built on."""
    order = sorted(ways, key=lambda way: (ways[way], way == BLOB, METHODS.index(way)))
    if rates is None:
        return next(way for way in order if way != BLOB or len(order) == 1)
    took = {way: rates.seconds(way, ways[way], plain_size) for way in order}
    quickest = min(took.values())
    return next(way for way in order if took[way] <= quickest + MARGIN)


def prefers_plain(rates: Rates | None, size: int, plain_size: int, layer_count: int = 1) -> bool:
    """Is a plain pull of layers of `size` bytes, `plain_size` unpacked, quicker than an update in
    the best case, when it moves next to nothing?"""
    if rates is None:
        return False
    trips = PLAIN_TRIPS + layer_count
    plain = rates.seconds(BLOB, size, plain_size, trips)
    return plain + UPDATE_MARGIN < rates.seconds(UPDATE, 0, plain_size)


def prefers_documents(rates: Rates) -> bool:
    """Is the line so fast that who holds nothing should look at the documents before it takes a
    first update, which brings packed forms?"""
    size, plain_size = TYPICAL_SIZES
    return choose_method({BLOB: size, PACKED: TYPICAL_PACKED}, plain_size, rates) == BLOB


def prefers_unpacked(rates: Rates) -> bool:
    """Does a packed form in an update take longer to unpack than its bytes save? It is unpacked
    while it comes, so the longer of the two counts."""
    plain_size = TYPICAL_SIZES[1]
    packed = rates.round_trip + max(TYPICAL_PACKED / rates.bandwidth, plain_size / rates.packed)
    return rates.seconds(FORM, TYPICAL_FORM, plain_size) + MARGIN < packed


def replan(layer: LayerPlan, rates: Rates) -> LayerPlan:
    """The same layer by the rates that are known by now."""
    return _plan_layer(layer.want, layer.chunks, rates)


def crossing_bandwidth(rates: Rates, blob_size: int, update_size: int, plain_size: int) -> float:
    """Bytes a second above which the plain blob of a layer is sooner there than an update of
    `update_size` bytes; infinite where it never is."""
    more_work = plain_size / rates.update - plain_size / rates.blob
    fewer_trips = PLAIN_TRIPS * rates.round_trip
    if more_work <= fewer_trips:
        return math.inf
    return max(0, blob_size - update_size) / (more_work - fewer_trips)


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
