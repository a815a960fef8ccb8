"""What a label table says about a binary: which fields, words and code sites name which labels, and
the body that follows. The way from a binary and a finished label table to the form; the encoder
finds the table, this applies it, and knows no more of Go than the decoder.

Words and sites are found by rule: an aligned word, or a field of code that leaves its function,
that holds the address of a label. Where the encoder decided otherwise an exception says so, so that
a node with another way to find them makes the same form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerkit.errors import FormatError
from layerkit.formats.addressfree import decoder, model
from layerkit.formats.addressfree.measures import clear_measures
from layerkit.formats.addressfree.model import Bytes8, Fields, Int64s, Labels
from layerkit.formats.sets import is_in
from layerkit.formats.sites import (
    BRANCH26,
    Candidates,
    branch_values,
    find_candidates,
    read_targets,
    write_values,
)

__all__ = [
    "Exceptions",
    "Found",
    "Places",
    "Starts",
    "content_ids",
    "counts_before",
    "exceptions_of",
    "field_targets",
    "find_places",
    "find_starts",
    "look",
    "new_fields",
    "rewrite",
    "write_ids",
]

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Exceptions:
    """File positions, ascending, at which the rule for words or sites is turned around."""

    words: Int64s
    sites: Int64s


@dataclass(frozen=True, slots=True)
class Starts:
    """Which label starts at an address, the last of several."""

    base: int  # ids of the lookup are distances from here: none is 0
    lookup: decoder.Lookup

    def find(self, addr: Int64s) -> Int64s:
        """The label that starts at each address; -1: none."""
        return self.lookup.find(addr - self.base)


def find_starts(labels: Labels) -> Starts:
    """All places where labels start."""
    start = labels.start
    base = int(start[0]) - 1 if labels.count else 0
    last = np.append(start[1:] != start[:-1], True) if labels.count else start > 0
    return Starts(base, decoder.make_lookup(np.where(last, start - base, 0)))


def field_targets(labels: Labels, starts: Starts, fields: Fields, value: Int64s) -> Int64s:
    """The label that each field of the binary names; -1: it is a number. Zero and all ones mean
    "none", but for fields that count through their zone from its start."""
    kinds, regions = labels.kinds, labels.regions
    base = np.array([regions[k.base_region].addr + k.base_delta for k in kinds], np.int64)
    shift = np.array([k.shift for k in kinds], np.int64)
    zoned = np.array(
        [k.counter >= 0 and k.zone == k.base_region and k.zone_pattern >= 0 for k in kinds], bool
    )
    kind = fields.kind
    target = starts.find(base[kind] + (value << shift[kind]))
    nothing = (value == 0xFFFFFFFF) | ((value == 0) & ~zoned[kind])
    return np.where(nothing, -1, target)


def new_fields(labels: Labels, fields: Fields, target: Int64s) -> Bools:
    """Fields that name the next label of their zone (see `model.resolve_new`)."""
    is_new = np.zeros(len(fields.pos), bool)
    counters = decoder.counters(labels)
    counter_of = np.full(len(labels.kinds), len(counters), np.uint16)
    for index, (members, _, _) in enumerate(counters):
        counter_of[members] = index
    own = counter_of[fields.kind]
    order = np.argsort(own, kind="stable")
    bounds = np.searchsorted(own[order], np.arange(len(counters) + 1))
    for index, (_, zone, pattern) in enumerate(counters):
        chosen = order[bounds[index] : bounds[index + 1]]
        _, ordinal_of = decoder.zone_ordinals(labels, zone, pattern)
        named = target[chosen]
        ordinal = np.where(named >= 0, ordinal_of[named], -1)
        before = np.concatenate(([-1], np.maximum.accumulate(ordinal)))[:-1]
        is_new[chosen] = (ordinal >= 0) & (ordinal == before + 1)
    return is_new


@dataclass(frozen=True, slots=True)
class Places:
    """Where ids stand outside code, and what names functions."""

    pos: Int64s  # file positions of fields that hold ids and of words, ascending
    target: Int64s  # the label that each names
    word_pos: Int64s
    word_label: Int64s
    name_pos: Int64s  # fields that name a function, in their order
    name_target: Int64s  # label of the name, -1: none


def find_places(
    labels: Labels, fields: Fields, target: Int64s, is_new: Bools, words: tuple[Int64s, Int64s]
) -> Places:
    """From the label that each field names (-1: none), which of them count instead, and words
    (positions, labels)."""
    by_id = np.flatnonzero((target >= 0) & ~is_new)
    pos = np.concatenate([fields.pos[by_id], words[0]])
    named = np.concatenate([target[by_id], words[1]])
    del by_id
    order = np.argsort(pos, kind="stable")
    names = np.flatnonzero(np.array([k.is_name for k in labels.kinds], bool)[fields.kind])
    return Places(pos[order], named[order], *words, fields.pos[names], target[names])


def write_ids(body: Bytes8, places: Places, ids: Int64s, ready: Bools | None = None) -> None:
    """Put ids into fields, and tagged ids into words: all, or those of the labels that are
    ready."""
    pos, target, words = places.pos, places.target, places.word_pos
    if ready is not None:
        now = ready[target]
        pos, target, words = pos[now], target[now], words[ready[places.word_label]]
    model.write_u32(body, pos, ids[target])
    model.write_u32(body, words + 4, np.full(len(words), model.TAG, np.int64))


# --- words and sites by rule


@dataclass(frozen=True, slots=True)
class _Code:
    """Candidates of one region of code whose target is a label, and whether each leaves its
    function."""

    offset: int  # of the region in the file
    sites: Candidates
    label: Int64s
    far: Bools


@dataclass(frozen=True, slots=True)
class Found:
    """What the rules find in a binary: words with the label that each names, and code."""

    starts: Starts
    word_pos: Int64s
    word_label: Int64s
    code: tuple[_Code, ...]


def look(labels: Labels, data: Bytes8, starts: Starts) -> Found:
    """Words and sites by rule."""
    pos, label = _words_by_rule(labels, data, starts)
    return Found(starts, pos, label, tuple(_code_by_rule(labels, data, starts)))


def exceptions_of(found: Found, word_pos: Int64s, site_pos: Int64s) -> Exceptions:
    """Where the encoder's words and sites (file positions) differ from the rule's."""
    none = np.zeros(0, np.int64)
    sites = np.concatenate([none, *(c.sites.pos[c.far] + c.offset for c in found.code)])
    return Exceptions(
        np.setxor1d(found.word_pos, word_pos, assume_unique=True),
        np.setxor1d(sites, site_pos, assume_unique=True),
    )


def _words_by_rule(labels: Labels, data: Bytes8, starts: Starts) -> tuple[Int64s, Int64s]:
    """Positions of the aligned words that hold the address of a label, and the labels."""
    none = np.zeros(0, np.int64)
    pos_parts, label_parts = [none], [none]
    for region in labels.regions:
        if not region.has_words or region.offset < 0:
            continue
        first = region.offset + (-region.addr) % 8
        pos = first + 8 * np.arange(max(0, (region.offset + region.size - first) // 8))
        label = starts.find(model.read_u64(data, pos))
        hit = np.flatnonzero(label >= 0)
        pos_parts.append(pos[hit])
        label_parts.append(label[hit])
    pos, label = np.concatenate(pos_parts), np.concatenate(label_parts)
    order = np.argsort(pos, kind="stable")
    return pos[order], label[order]


def _code_by_rule(labels: Labels, data: Bytes8, starts: Starts) -> Iterator[_Code]:
    heads = model.find_heads(labels)
    for region in labels.regions:
        if not region.is_text or region.offset < 0:
            continue
        code = data[region.offset : region.offset + region.size]
        sites = find_candidates(code, labels.machine)
        label = starts.find(read_targets(code, 0, sites, region.addr))
        hit = np.flatnonzero(label >= 0)
        sites, label = sites.select(hit), label[hit]
        own = heads[np.searchsorted(labels.start, sites.pos + region.addr, side="right") - 1]
        yield _Code(region.offset, sites, label, heads[label] != own)


# --- the body


def rewrite(
    labels: Labels, data: Bytes8, exceptions: Exceptions, found: Found | None = None
) -> Bytes8:
    """The form's body. `found`: what `look` finds, where the caller knows it. Raises FormatError
    where the table is not one of this binary."""
    if found is None:
        found = look(labels, data, find_starts(labels))
    fields = model.expand_fields(labels)
    target = field_targets(labels, found.starts, fields, model.read_u32(data, fields.pos))
    is_new = new_fields(labels, fields, target)
    words = _words(found, exceptions.words)
    body = data.copy()
    for _, place, derived in list(decoder.derived_bytes(labels, data)):
        if data[place : place + len(derived)].tobytes() != derived.tobytes():
            raise FormatError("labels: a derived table is another than the binary's")
        body[place : place + len(derived)] = 0
    clear_measures(labels, body)
    masked = body.copy()
    model.clear(masked, fields.pos, 4)
    model.clear(masked, words[0], 8)
    model.write_u32(body, fields.pos[is_new], np.full(int(is_new.sum()), model.NEW, np.int64))
    places = find_places(labels, fields, target, is_new, words)
    del fields, target, is_new, words
    ids = _ids(labels, places, masked, body)
    del masked
    write_ids(body, places, ids)
    for code in found.code:
        turned = is_in(code.sites.pos + code.offset, exceptions.sites)
        chosen = np.flatnonzero(code.far ^ turned)
        sites, value = code.sites.select(chosen), ids[code.label[chosen]]
        value = np.where(sites.kind == BRANCH26, branch_values(value), value)
        write_values(body, code.offset, sites, value)
    return body


def _words(found: Found, turned: Int64s) -> tuple[Int64s, Int64s]:
    """The words to rewrite: the rule's, with the exceptions turned around."""
    if not is_in(turned, found.word_pos).all():
        raise FormatError("labels: an exception is no word that the binary has")
    keep = ~is_in(found.word_pos, turned)
    return found.word_pos[keep], found.word_label[keep]


def content_ids(labels: Labels, label: Int64s, data: Bytes8, start: Int64s, size: Int64s) -> Int64s:
    """Ids of some labels by the content that each has in `data`, as `model.derive_ids` gives them;
    `start` and `size` are all labels' `model.key_ranges`."""
    hashes = np.zeros(len(label), np.uint64)
    backed = np.flatnonzero(labels.offsets()[label] >= 0)
    hashes[backed] = model.hash_content(data, start[label[backed]], size[label[backed]])
    space = np.array([r.space for r in labels.regions], np.uint64)[labels.region_of[label]]
    hashes = np.where(space > 0, model.mix(hashes, space), hashes)
    return model.fold_id(hashes, labels.salt)


def counts_before(marks: Bools) -> NDArray[np.int32]:
    """How many marks stand before each place, and before the end."""
    count = np.zeros(len(marks) + 1, np.int32)
    np.cumsum(marks, out=count[1:])
    return count


def _ids(labels: Labels, places: Places, masked: Bytes8, body: Bytes8) -> Int64s:
    """All ids. Objects that are what they point to come in rounds, innermost first; `body` gets
    the ids that they need."""
    heads = model.find_heads(labels)
    full = labels.rule == model.RULE_FULL
    rules = labels.rule
    labels.rule = np.where(full, model.RULE_NONE, rules)
    ids = model.derive_ids(labels, masked, body)
    labels.rule = rules
    _function_ids(labels, places.name_target, ids)
    model.continue_ids(labels, ids)
    pos, named = places.pos, places.target
    start, size = model.key_ranges(labels)
    open_ = np.flatnonzero(full)
    low = np.searchsorted(pos, start[open_])
    high = np.searchsorted(pos, start[open_] + size[open_])
    written = np.zeros(labels.count, bool)
    while len(open_):
        known = ids[heads] != 0
        write_ids(body, places, ids, known & ~written)
        written = known
        missing = counts_before(~known[named])
        ready = missing[high] == missing[low]
        if not ready.any():
            raise FormatError("labels: objects that are what they point to point in a circle")
        now, open_, low, high = open_[ready], open_[~ready], low[~ready], high[~ready]
        ids[now] = content_ids(labels, now, body, start, size)
        model.continue_ids(labels, ids)
    return ids


def _function_ids(labels: Labels, names: Int64s, ids: Int64s) -> None:
    """Functions by their names, as `decoder.function_ids` does it from the form."""
    functions = np.flatnonzero(labels.rule == model.RULE_NAME)
    if not len(functions):
        return
    order = decoder.functions_by_name_field(labels, functions, len(names))
    if (names[order] < 0).any():
        raise FormatError("labels: a function has no name")
    ids[functions] = model.name_ids(labels, ids[names[order]])
