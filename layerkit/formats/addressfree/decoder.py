"""From the label table and the form's body back to the binary. Dumb on purpose: it knows labels,
patterns, kinds and the candidate rule for code, and no Go.

Every array is sized by what the form holds, so memory is bounded by a small multiple of it: for a
real binary about three times its size, form and result included.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from layerkit.errors import FormatError
from layerkit.formats import kernel
from layerkit.formats.addressfree import model
from layerkit.formats.addressfree.measures import write_measures
from layerkit.formats.addressfree.model import (
    Bytes8,
    Fields,
    Int32s,
    Int64s,
    Labels,
    Region,
    Uint32s,
)
from layerkit.formats.sites import (
    ARM64,
    BRANCH26,
    Candidates,
    branch_values,
    find_candidates,
    read_values,
    write_targets,
)

__all__ = [
    "Lookup",
    "TextHits",
    "counters",
    "derived_bytes",
    "field_bases",
    "field_labels",
    "function_ids",
    "make_lookup",
    "place_fields",
    "restore",
    "text_hits",
]


FIPS_MAGIC_SIZE: Final = 16  # bytes
FIPS_SUM_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class Lookup:
    """Ids in ascending order and the label that each names; as a table, where there is a kernel."""

    ids: Int64s
    label: Int64s
    table: kernel.Table | None = None

    def find(self, value: Int64s) -> Int64s:
        """Label of each value; -1 where it is no id."""
        if self.table is not None and (found := kernel.find_labels(self.table, value)) is not None:
            return found
        if not len(self.ids):
            return np.full(len(value), -1, np.int64)
        at = np.searchsorted(self.ids, value)
        at[at == len(self.ids)] = 0
        return np.where(self.ids[at] == value, self.label[at], -1)


def make_lookup(ids: Int64s) -> Lookup:
    """Lookup over the labels that have an id (0 is none). Where two are equal, which the encoder
    never lets happen, the lower address wins."""
    none = np.zeros(0, np.int64)
    table = kernel.make_table(ids)
    if table is not None:
        return Lookup(none, none, table)
    label = np.flatnonzero(ids)
    order = np.argsort(ids[label], kind="stable")
    label = label[order]
    value = ids[label]
    keep = np.concatenate(([True], value[1:] != value[:-1])) if len(value) else value == 0
    return Lookup(value[keep], label[keep])


def field_labels(labels: Labels, fields: Fields, value: Uint32s, lookup: Lookup) -> Int32s:
    """The label that each field of the form names; -1: the value stays as it is."""
    if lookup.table is not None:
        done = kernel.name_fields(counters(labels), fields.kind, value, lookup.table, model.NEW)
        if isinstance(done, int):  # kernel.PAST_ZONE
            raise FormatError(_PAST_ZONE)
        if done is not None:
            return done
    return _field_labels(labels, fields, value, lookup)


_PAST_ZONE: Final = "form: a field names a label past the end of its zone"


def _field_labels(labels: Labels, fields: Fields, value: Uint32s, lookup: Lookup) -> Int32s:
    target = lookup.find(value.astype(np.int64))
    known = counters(labels)
    for index, (zone, pattern) in enumerate(known.zones.tolist()):
        chosen = np.flatnonzero((known.counter_of == index)[fields.kind])
        eligible, ordinal_of = zone_ordinals(labels, zone, pattern)
        named = target[chosen]
        ordinal = np.where(named >= 0, ordinal_of[named], -1)
        is_new = value[chosen] == model.NEW
        resolved = model.resolve_new(is_new, ordinal)
        news = chosen[is_new]
        if len(news) and int(resolved[is_new].max()) >= len(eligible):
            raise FormatError(_PAST_ZONE)
        target[news] = eligible[resolved[is_new]]
    return target.astype(np.int32)


def counters(labels: Labels) -> kernel.Counters:
    """The NEW counters: kinds with the same number share one, and its zone is that of the first of
    them."""
    numbers = sorted({k.counter for k in labels.kinds if k.counter >= 0})
    place = {number: index for index, number in enumerate(numbers)}
    counter_of = np.array([place.get(k.counter, -1) for k in labels.kinds], np.int64)
    first = [next(k for k in labels.kinds if k.counter == number) for number in numbers]
    zones = np.array([(k.zone, k.zone_pattern) for k in first], np.int64).reshape(-1, 2)
    return kernel.Counters(labels.region_of, labels.pattern, zones, counter_of)


def zone_ordinals(labels: Labels, zone: int, pattern: int) -> tuple[Int64s, Int64s]:
    """Labels that count in a zone, and for every label its ordinal there (-1: none)."""
    inside = labels.region_of == zone
    if pattern >= 0:
        inside = inside & (labels.pattern == pattern)
    eligible = np.flatnonzero(inside)
    ordinal_of = np.full(labels.count, -1, np.int64)
    ordinal_of[eligible] = np.arange(len(eligible))
    return eligible, ordinal_of


def function_ids(labels: Labels, fields: Fields, value: Uint32s, ids: Int64s) -> None:
    """Give the RULE_NAME labels their ids: the k-th name field names the k-th of them."""
    functions = np.flatnonzero(labels.rule == model.RULE_NAME)
    if not len(functions):
        return
    chosen = np.array([k.is_name for k in labels.kinds], bool)[fields.kind]
    own = Fields(fields.pos[chosen], fields.kind[chosen])
    names = field_labels(labels, own, value[chosen], make_lookup(ids))
    if len(names) < len(functions) or (names < 0).any():
        raise FormatError("form: a function has no name")
    order = functions_by_name_field(labels, functions, len(names))
    ids[functions] = model.name_ids(labels, ids[names[order]])


def functions_by_name_field(labels: Labels, functions: Int64s, count: int) -> Int64s:
    """Ordinal of the name field of each RULE_NAME label: its ordinal among the text's labels that
    start a function (those with a rule of their own)."""
    text = np.array([r.is_text for r in labels.regions], bool)[labels.region_of]
    starts = np.flatnonzero(
        text & (labels.rule != model.RULE_CONT) & (labels.rule != model.RULE_END)
    )
    ordinal = np.searchsorted(starts, functions)
    if len(ordinal) and int(ordinal.max()) >= count:
        raise FormatError("form: more functions than names")
    return ordinal


@dataclass(frozen=True, slots=True)
class TextHits:
    """The sites of one text region, and the label that each names."""

    region: Region
    sites: Candidates
    label: Int64s


def text_hits(labels: Labels, body: Bytes8, ids: Int64s, skip: Int64s) -> list[TextHits]:
    """Sites in the form's code: candidates whose field holds an id, without the exceptions."""
    far = make_lookup(ids)
    near = _near_lookup(labels, ids)
    return [
        _region_hits(labels.machine, region, body, far, near, _own_skip(region, skip))
        for region in labels.regions
        if region.is_text and region.offset >= 0
    ]


def _near_lookup(labels: Labels, ids: Int64s) -> Lookup:
    """Lookup for 26-bit branches, which are in arm64 code only and go to code only."""
    if labels.machine != ARM64:
        return make_lookup(np.zeros(0, np.int64))
    is_text = np.array([r.is_text for r in labels.regions], bool)[labels.region_of]
    return make_lookup(np.where(is_text & (ids > 0), branch_values(ids), 0))


def _own_skip(region: Region, skip: Int64s) -> Int64s:
    """Only this region's exceptions (ascending): many regions must not take many passes."""
    low, high = np.searchsorted(skip, (region.offset, region.offset + region.size))
    return skip[low:high]


def _region_hits(
    machine: int, region: Region, body: Bytes8, far: Lookup, near: Lookup, skip: Int64s
) -> TextHits:
    if far.table is not None and near.table is not None:
        done = kernel.text_hits(
            body, region.offset, region.size, machine, far.table, near.table, skip
        )
        if done is not None:
            return TextHits(region, Candidates(*done[0]), done[1])
    found = find_candidates(body[region.offset : region.offset + region.size], machine)
    value = read_values(body, region.offset, found)
    label = np.where(found.kind == BRANCH26, near.find(value), far.find(value))
    hit = (label >= 0) & ~np.isin(found.pos + region.offset, skip)
    return TextHits(region, found.select(hit), label[hit])


def restore(labels: Labels, body: bytes | memoryview, skip: Int64s, target: memoryview) -> None:
    """Write the binary that the form stands for into `target`, which is as long as the body."""
    form, out = np.frombuffer(body, np.uint8), np.frombuffer(target, np.uint8)
    out[:] = form
    ids = _restore_data(labels, form, out)
    far, near = make_lookup(ids), _near_lookup(labels, ids)
    del ids
    for region in labels.regions:
        if region.is_text and region.offset >= 0:
            _restore_code(labels, region, form, out, far, near, _own_skip(region, skip))
    del far, near
    write_measures(labels, out)
    for _, at, found in derived_bytes(labels, out):
        out[at : at + len(found)] = found


def _restore_data(labels: Labels, form: Bytes8, out: Bytes8) -> Int64s:
    """Put addresses into the fields and words of `out`, a copy of the form; returns all ids."""
    fields = model.expand_fields(labels)
    value = model.read_fields(form, fields.pos)
    words = model.find_tagged_words(labels, form)
    model.clear_fields(out, fields.pos)  # until below, `out` is the content that ids follow from
    model.clear(out, words, 8)
    ids = model.derive_ids(labels, out, form)
    function_ids(labels, fields, value, ids)
    model.continue_ids(labels, ids)
    lookup = make_lookup(ids)
    target = field_labels(labels, fields, value, lookup)
    word_target = lookup.find(model.read_u32(form, words))
    named = word_target >= 0
    model.write_u64(out, words[~named], model.read_u64(form, words[~named]))
    place_fields(labels, fields, value, target, out)
    model.write_u64(out, words[named], labels.start[word_target[named]])
    return ids


def place_fields(
    labels: Labels, fields: Fields, value: Uint32s, target: Int32s, out: Bytes8
) -> None:
    """Put the place of its label into each field; what is no id stays as it is."""
    base, shift = field_bases(labels)
    if kernel.place_fields(
        out, fields.pos, fields.kind, value, target, start=labels.start, base=base, shift=shift
    ):
        return
    known = target >= 0
    pos = fields.pos.astype(np.int64)
    model.write_u32(out, pos[~known], value[~known].astype(np.int64))
    kind = fields.kind[known]
    place = (labels.start[target[known]] - base[kind]) >> shift[kind]
    model.write_u32(out, pos[known], place)


def field_bases(labels: Labels) -> tuple[Int64s, Int64s]:
    """For each kind the address that its fields count from, and their unit as a shift."""
    base = [labels.regions[k.base_region].addr + k.base_delta for k in labels.kinds]
    return np.array(base, np.int64), np.array([k.shift for k in labels.kinds], np.int64)


def _restore_code(
    labels: Labels, region: Region, form: Bytes8, out: Bytes8, far: Lookup, near: Lookup,
    skip: Int64s,
) -> None:  # fmt: skip
    """Put distances into the sites of one region of `out`."""
    if far.table is not None and near.table is not None:
        done = kernel.restore_sites(
            form, out, region.offset, region.size, labels.machine, far=far.table,
            near=near.table, skip=skip, addr=region.addr, label_addr=labels.start,
        )  # fmt: skip
        if done:
            return
    hits = _region_hits(labels.machine, region, form, far, near, skip)
    target = labels.start[hits.label]
    write_targets(out, region.offset, hits.sites, region.addr, target)


def derived_bytes(labels: Labels, out: Bytes8) -> Iterator[tuple[int, int, Bytes8]]:
    """Label, file position and bytes of all that the form leaves out. `out` is complete but for
    them; the FIPS sum comes last, since it covers code and data."""
    offsets = labels.offsets()
    for derived in (model.DERIVED_FINDFUNCTAB, model.DERIVED_FIPS_SUM):
        chosen = [i for i, p in enumerate(labels.patterns) if p.derived == derived]
        places = np.flatnonzero(np.isin(labels.pattern, chosen) & (offsets >= 0)).tolist()
        if len(places) > 1:
            raise FormatError("form: a derived table stands in several places")
        for label in places:
            at, size = int(offsets[label]), int(labels.size[label])
            if derived == model.DERIVED_FINDFUNCTAB:
                yield label, at, findfunctab(labels, size)
            else:
                yield label, at + FIPS_MAGIC_SIZE, fips_sum(labels, out, at)


def fips_sum(labels: Labels, out: Bytes8, at: int) -> Bytes8:
    """The sum in go:fipsinfo: HMAC-SHA256 with a key of zeros over four address ranges, which
    stand behind it. Source: src/cmd/link/internal/ld/fips140.go asmbfips, go1.24 to go1.27."""
    first = at + FIPS_MAGIC_SIZE + FIPS_SUM_SIZE + 8  # behind the magic, the sum, its own address
    if first + 64 > len(out):
        raise FormatError("form: fips info lies outside the file")
    bounds = out[first : first + 64].view("<i8").tolist()
    sum_ = hmac.new(bytes(32), b"go fips object v1\n", hashlib.sha256)
    for low, high in zip(bounds[0::2], bounds[1::2], strict=True):
        home = next((r for r in labels.regions if r.addr <= low < r.addr + r.size), None)
        if home is None or home.offset < 0 or not low <= high:
            raise FormatError("form: a fips range lies outside the file")
        start = home.offset + low - home.addr
        if start + high - low > len(out):
            raise FormatError("form: a fips range lies outside the file")
        sum_.update((high - low).to_bytes(8, "big"))
        sum_.update(out[start : start + high - low].data)
    return np.frombuffer(sum_.digest(), np.uint8)


def findfunctab(labels: Labels, size: int) -> Bytes8:
    """Go's lookup table from pc to function, of `size` bytes: for each 4096 bytes of text the
    number of the first function there, and for each 256 bytes of it the distance from that number.
    How far the text goes follows from the size: the section may be longer (arm64).
    Source: src/cmd/link/internal/ld/pcln.go findfunctab, go1.20 to go1.27."""
    text = np.array([r.is_text for r in labels.regions], bool)[labels.region_of]
    starts = labels.start[text & (labels.rule != model.RULE_CONT) & (labels.rule != model.RULE_END)]
    buckets = -(-size // 20)
    count = size - 4 * buckets
    if not len(starts) or count <= 0:
        return np.zeros(0, np.uint8)
    first = np.searchsorted(starts, int(starts[0]) + 256 * np.arange(count), side="right") - 1
    table = np.zeros((buckets, 20), np.uint8)
    base = first[::16]
    table[:, :4] = base.astype("<u4").view(np.uint8).reshape(-1, 4)
    delta = np.zeros(buckets * 16, np.int64)
    delta[:count] = first - np.repeat(base, 16)[:count]
    table[:, 4:] = delta.reshape(-1, 16) & 0xFF
    return table.reshape(-1)[: 4 * buckets + count]
