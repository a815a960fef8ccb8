"""From the label table and the form's body back to the binary. Dumb on purpose: it knows labels,
patterns, kinds and the candidate rule for code, and no Go.

Every array is sized by what the form holds, so memory is bounded by a small multiple of it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from layerkit.errors import FormatError
from layerkit.formats.addressfree import model
from layerkit.formats.addressfree.model import Bytes8, Fields, Int64s, Labels, Region
from layerkit.formats.sites import (
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
    "field_labels",
    "function_ids",
    "make_lookup",
    "restore",
    "text_hits",
]


FIPS_MAGIC_SIZE: Final = 16  # bytes
FIPS_SUM_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class Lookup:
    """Ids in ascending order and the label that each names."""

    ids: Int64s
    label: Int64s

    def find(self, value: Int64s) -> Int64s:
        """Label of each value; -1 where it is no id."""
        if not len(self.ids):
            return np.full(len(value), -1, np.int64)
        at = np.searchsorted(self.ids, value)
        at[at == len(self.ids)] = 0
        return np.where(self.ids[at] == value, self.label[at], -1)


def make_lookup(ids: Int64s) -> Lookup:
    """Lookup over the labels that have an id (0 is none). Where two are equal, which the encoder
    never lets happen, the lower address wins."""
    label = np.flatnonzero(ids)
    order = np.argsort(ids[label], kind="stable")
    label = label[order]
    value = ids[label]
    keep = np.concatenate(([True], value[1:] != value[:-1])) if len(value) else value == 0
    return Lookup(value[keep], label[keep])


def field_labels(labels: Labels, fields: Fields, value: Int64s, lookup: Lookup) -> Int64s:
    """The label that each field of the form names; -1: the value stays as it is."""
    target = lookup.find(value)
    for members, zone, pattern in counters(labels):
        chosen = np.flatnonzero(np.isin(fields.kind, members))
        eligible, ordinal_of = zone_ordinals(labels, zone, pattern)
        named = target[chosen]
        ordinal = np.where(named >= 0, ordinal_of[named], -1)
        is_new = value[chosen] == model.NEW
        resolved = model.resolve_new(is_new, ordinal)
        news = chosen[is_new]
        if len(news) and int(resolved[is_new].max()) >= len(eligible):
            raise FormatError("form: a field names a label past the end of its zone")
        target[news] = eligible[resolved[is_new]]
    return target


def counters(labels: Labels) -> list[tuple[list[int], int, int]]:
    """For each NEW counter: the kinds that share it, and its zone's region and pattern (those of
    its first kind)."""
    found = []
    for counter in sorted({k.counter for k in labels.kinds if k.counter >= 0}):
        members = [i for i, k in enumerate(labels.kinds) if k.counter == counter]
        first = labels.kinds[members[0]]
        found.append((members, first.zone, first.zone_pattern))
    return found


def zone_ordinals(labels: Labels, zone: int, pattern: int) -> tuple[Int64s, Int64s]:
    """Labels that count in a zone, and for every label its ordinal there (-1: none)."""
    inside = labels.region_of == zone
    if pattern >= 0:
        inside = inside & (labels.pattern == pattern)
    eligible = np.flatnonzero(inside)
    ordinal_of = np.full(labels.count, -1, np.int64)
    ordinal_of[eligible] = np.arange(len(eligible))
    return eligible, ordinal_of


def function_ids(labels: Labels, fields: Fields, value: Int64s, ids: Int64s) -> None:
    """Give the RULE_NAME labels their ids: the k-th name field names the k-th of them."""
    functions = np.flatnonzero(labels.rule == model.RULE_NAME)
    if not len(functions):
        return
    kinds = [i for i, k in enumerate(labels.kinds) if k.is_name]
    chosen = np.isin(fields.kind, kinds)
    own = Fields(fields.pos[chosen], fields.kind[chosen])
    names = field_labels(labels, own, value[chosen], make_lookup(ids))
    if len(names) < len(functions) or (names < 0).any():
        raise FormatError("form: a function has no name")
    order = functions_by_name_field(labels, functions, len(names))
    ids[functions] = model.name_ids(labels, ids[names[order]])


def functions_by_name_field(labels: Labels, functions: Int64s, count: int) -> Int64s:
    """Ordinal of the name field of each RULE_NAME label: its ordinal among the text's labels that
    start a function (those with a rule of their own)."""
    text = np.array([r.is_text for r in labels.regions])[labels.region_of]
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
    lookup = make_lookup(ids)
    is_text = np.array([r.is_text for r in labels.regions])[labels.region_of]
    near = make_lookup(np.where(is_text & (ids > 0), branch_values(ids), 0))
    hits = []
    for region in labels.regions:
        if not region.is_text or region.offset < 0:
            continue
        code = body[region.offset : region.offset + region.size]
        found = find_candidates(code, labels.machine)
        value = read_values(body, region.offset, found)
        branch = found.kind == BRANCH26
        label = np.where(branch, near.find(value), lookup.find(value))
        # only this region's exceptions (ascending): many regions must not take many passes
        low, high = np.searchsorted(skip, (region.offset, region.offset + region.size))
        hit = (label >= 0) & ~np.isin(found.pos + region.offset, skip[low:high])
        hits.append(TextHits(region, found.select(hit), label[hit]))
    return hits


def restore(labels: Labels, body: bytes, skip: Int64s) -> bytes:
    """The binary that the form stands for."""
    form = np.frombuffer(body, np.uint8)
    out = form.copy()
    fields = model.expand_fields(labels)
    value = model.read_u32(form, fields.pos)
    words = model.find_tagged_words(labels, form)
    masked = out.copy()
    model.write_u32(masked, fields.pos, np.zeros(len(fields.pos), np.int64))
    model.write_u64(masked, words, np.zeros(len(words), np.int64))
    ids = model.derive_ids(labels, masked, form)
    del masked
    function_ids(labels, fields, value, ids)
    model.continue_ids(labels, ids)
    lookup = make_lookup(ids)

    target = field_labels(labels, fields, value, lookup)
    base = np.array(
        [labels.regions[k.base_region].addr + k.base_delta for k in labels.kinds], np.int64
    )
    shift = np.array([k.shift for k in labels.kinds], np.int64)
    known = target >= 0
    kind = fields.kind[known]
    model.write_u32(
        out, fields.pos[known], (labels.start[target[known]] - base[kind]) >> shift[kind]
    )
    named = lookup.find(model.read_u32(form, words))
    model.write_u64(out, words[named >= 0], labels.start[named[named >= 0]])
    for hits in text_hits(labels, form, ids, skip):
        region, target_addr = hits.region, labels.start[hits.label]
        write_targets(out, region.offset, hits.sites, region.addr, target_addr)
    for _, at, found in derived_bytes(labels, out):
        out[at : at + len(found)] = found
    return out.tobytes()


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


def findfunctab(labels: Labels, limit: int) -> Bytes8:
    """Go's lookup table from pc to function: for each 4096 bytes of text the number of the first
    function there, and for each 256 bytes of it the distance from that number. Empty when it is
    over `limit` bytes. Source: src/cmd/link/internal/ld/pcln.go findfunctab, go1.20 to go1.27."""
    text = np.array([r.is_text for r in labels.regions])[labels.region_of]
    starts = labels.start[text & (labels.rule != model.RULE_CONT) & (labels.rule != model.RULE_END)]
    ends = labels.start[text & (labels.rule == model.RULE_END)]
    if not len(starts) or not len(ends):
        return np.zeros(0, np.uint8)
    low, span = int(starts[0]), int(ends[-1] - starts[0])
    count, buckets = -(-span // 256), -(-span // 4096)
    if span < 0 or 4 * buckets + count > limit:
        return np.zeros(0, np.uint8)  # not the table of this text
    first = np.searchsorted(starts, low + 256 * np.arange(count), side="right") - 1
    table = np.zeros((buckets, 20), np.uint8)
    base = first[::16]
    table[:, :4] = base.astype("<u4").view(np.uint8).reshape(-1, 4)
    delta = np.zeros(buckets * 16, np.int64)
    delta[:count] = first - np.repeat(base, 16)[:count]
    table[:, 4:] = delta.reshape(-1, 16) & 0xFF
    return table.reshape(-1)[: 4 * buckets + count]
