"""What a label table says about a binary: which fields, words and code sites name which labels, and
the body that follows. The way from a binary and a finished label table to the form; the encoder
finds the table, this applies it, and knows no more of Go than the decoder.

Words and sites are found by rule: an aligned word, or a field of code that leaves its function,
that holds the address of a label. Where the encoder decided otherwise an exception says so, so that
a node with another way to find them makes the same form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from layerkit.errors import FormatError
from layerkit.formats import kernel
from layerkit.formats.addressfree import decoder, model
from layerkit.formats.addressfree.measures import clear_measures
from layerkit.formats.addressfree.model import (
    Bytes8,
    Fields,
    Int32s,
    Int64s,
    Labels,
    Region,
    Uint32s,
)
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
    "Places",
    "Starts",
    "counts_before",
    "find_exceptions",
    "find_places",
    "find_starts",
    "find_targets",
    "find_words",
    "leaving_sites",
    "rewrite",
    "write_ids",
    "write_sites",
]

Bools = NDArray[np.bool_]
_LABEL_BITS: Final = 26  # wire.COUNT_LIMIT
DEPTH_LIMIT: Final = 256  # of objects that are what they point to; each level takes a pass. Seen: 5


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


def find_targets(
    labels: Labels, starts: Starts, fields: Fields, value: Uint32s
) -> tuple[Int32s, Bools]:
    """The label that each field of the binary names (-1: it is a number), and which fields name the
    next label of their zone (see `model.resolve_new`). Zero and all ones mean "none", but for
    fields that count through their zone from its start."""
    base, shift = decoder.field_bases(labels)
    zoned = np.array(
        [k.counter >= 0 and k.zone == k.base_region and k.zone_pattern >= 0 for k in labels.kinds],
        np.bool_,
    )
    if starts.lookup.table is not None:
        done = kernel.find_targets(
            decoder.counters(labels), fields.kind, value, starts.lookup.table, starts.base,
            base=base, shift=shift, zoned=zoned,
        )  # fmt: skip
        if done is not None:
            return done
    kind, number = fields.kind, value.astype(np.int64)
    place = starts.find(base[kind] + (number << shift[kind]))
    nothing = (number == 0xFFFFFFFF) | ((number == 0) & ~zoned[kind])
    target: Int32s = np.where(nothing, -1, place).astype(np.int32)
    return target, _new_fields(labels, fields, target)


def _new_fields(labels: Labels, fields: Fields, target: Int32s) -> Bools:
    is_new = np.zeros(len(fields.pos), bool)
    counters = decoder.counters(labels)
    for index, (zone, pattern) in enumerate(counters.zones.tolist()):
        chosen = np.flatnonzero((counters.counter_of == index)[fields.kind])
        _, ordinal_of = decoder.zone_ordinals(labels, zone, pattern)
        named = target[chosen]
        ordinal = np.where(named >= 0, ordinal_of[named], -1)
        before = np.concatenate(([-1], np.maximum.accumulate(ordinal)))[:-1]
        is_new[chosen] = (ordinal >= 0) & (ordinal == before + 1)
    return is_new


@dataclass(frozen=True, slots=True)
class Places:
    """Where ids stand outside code, and what names functions."""

    pos: Int32s  # file positions of fields that hold ids and of words, ascending
    target: Int32s  # the label that each names
    word_pos: Int64s
    word_label: Int32s
    name_target: Int32s  # for each field that names a function: label of the name, -1: none
    name_pos: Int32s  # where it stands


def find_places(
    labels: Labels, fields: Fields, target: Int32s, is_new: Bools, words: tuple[Int64s, Int32s]
) -> Places:
    """From the label that each field names (-1: none), which of them count instead, and words
    (positions, labels)."""
    key = _place_keys(fields, target, is_new, words)
    names = np.flatnonzero(np.array([k.is_name for k in labels.kinds], bool)[fields.kind])
    name_pos, name_target = fields.pos[names], target[names]
    pos, named = np.empty(len(key), np.int32), np.empty(len(key), np.int32)
    np.bitwise_and(key, (1 << _LABEL_BITS) - 1, out=named, casting="unsafe")
    np.right_shift(key, _LABEL_BITS + 1, out=pos, casting="unsafe")
    return Places(pos, named, *words, name_target, name_pos)


def _place_keys(
    fields: Fields, target: Int32s, is_new: Bools, words: tuple[Int64s, Int32s]
) -> Int64s:
    """Position and label of each place as one number, ascending; where a word stands at the place
    of a field, it comes behind it."""
    by_id = (target >= 0) & ~is_new
    count = int(by_id.sum())
    key = np.empty(count + len(words[0]), np.int64)
    key[:count], key[count:] = fields.pos[by_id], words[0]
    key <<= _LABEL_BITS + 1
    key[:count] |= target[by_id]
    key[count:] |= words[1] | 1 << _LABEL_BITS
    key.sort()
    return key


def write_ids(body: Bytes8, places: Places, ids: Int64s, ready: Bools) -> None:
    """Put ids into fields, and tagged ids into words: those of the labels that are ready."""
    pos, target, words = places.pos, places.target, places.word_pos
    if not kernel.write_ids(body, pos, target, ids, ready):
        now = ready[target]
        model.write_u32(body, pos[now].astype(np.int64), ids[target[now]])
    words = words[ready[places.word_label]]
    model.write_u32(body, words + 4, np.full(len(words), model.TAG, np.int64))


# --- words and sites by rule


def find_words(labels: Labels, data: Bytes8, starts: Starts) -> tuple[Int64s, Int32s]:
    """Positions of the aligned words that hold the address of a label, and the labels."""
    pos_parts, label_parts = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for region in labels.regions:
        if not region.has_words or region.offset < 0:
            continue
        first = region.offset + (-region.addr) % 8
        count = max(0, (region.offset + region.size - first) // 8)
        pos, label = _region_words(data, first, count, starts)
        pos_parts.append(pos)
        label_parts.append(label)
    pos, label = np.concatenate(pos_parts), np.concatenate(label_parts)
    if (pos[1:] > pos[:-1]).all():
        return pos, label
    order = np.argsort(pos, kind="stable")
    return pos[order], label[order]


def _region_words(data: Bytes8, first: int, count: int, starts: Starts) -> tuple[Int64s, Int32s]:
    if starts.lookup.table is not None:
        done = kernel.find_words(data, first, count, starts.lookup.table, starts.base)
        if done is not None:
            return done
    pos = first + 8 * np.arange(count)
    label = starts.find(model.read_u64(data, pos))
    hit = np.flatnonzero(label >= 0)
    return pos[hit], label[hit].astype(np.int32)


def leaving_sites(labels: Labels, data: Bytes8, starts: Starts) -> Int64s:
    """File positions of the sites that leave their function."""
    head, parts = model.find_heads(labels), [np.zeros(0, np.int64)]
    for region in _code_regions(labels):
        done = None
        if starts.lookup.table is not None:
            done = kernel.leaving_sites(
                data, region.offset, region.size, labels.machine, starts=starts.lookup.table,
                origin=starts.base, addr=region.addr, label_addr=labels.start, head=head,
            )  # fmt: skip
        if done is None:
            sites, _, leaves = _sites_by_rule(labels, region, data, starts, head)
            done = sites.pos[leaves] + region.offset
        parts.append(done)
    return np.concatenate(parts)


def _code_regions(labels: Labels) -> list[Region]:
    return [region for region in labels.regions if region.is_text and region.offset >= 0]


def _sites_by_rule(
    labels: Labels, region: Region, data: Bytes8, starts: Starts, head: Int32s
) -> tuple[Candidates, Int64s, Bools]:
    """Candidates whose target is a label, the label, and whether each leaves its function."""
    code = data[region.offset : region.offset + region.size]
    sites = find_candidates(code, labels.machine)
    label = starts.find(read_targets(code, 0, sites, region.addr))
    hit = np.flatnonzero(label >= 0)
    sites, label = sites.select(hit), label[hit]
    own = head[np.searchsorted(labels.start, sites.pos + region.addr, side="right") - 1]
    return sites, label, head[label] != own


def find_exceptions(
    labels: Labels, data: Bytes8, starts: Starts, word_pos: Int64s, site_pos: Int64s
) -> Exceptions:
    """Where the encoder's words and sites (file positions) differ from the rule's."""
    ruled, sites = find_words(labels, data, starts)[0], leaving_sites(labels, data, starts)
    return Exceptions(
        np.setxor1d(ruled, word_pos, assume_unique=True),
        np.setxor1d(sites, site_pos, assume_unique=True),
    )


# --- the body


def rewrite(labels: Labels, data: Bytes8, exceptions: Exceptions, body: Bytes8) -> None:
    """Write the form's body into `body`, which is as long as the binary. Raises FormatError where
    the table is not one of this binary. Memory: some 80 bytes a label and 20 a field."""
    places, ids = _rewrite_data(labels, data, exceptions.words, body)
    _finish_ids(labels, places, ids, body)
    write_ids(body, places, ids, np.ones(labels.count, bool))
    del places
    write_sites(labels, data, find_starts(labels), ids, exceptions.sites, body)


def _rewrite_data(
    labels: Labels, data: Bytes8, turned: Int64s, body: Bytes8
) -> tuple[Places, Int64s]:
    """The body but for ids; where ids belong outside code; and those that follow from contents."""
    starts, fields = find_starts(labels), model.expand_fields(labels)
    target, is_new = find_targets(labels, starts, fields, model.read_fields(data, fields.pos))
    words = _choose_words(find_words(labels, data, starts), turned)
    del starts
    body[:] = data
    cleared = _list_cleared(labels, data)
    _clear(labels, cleared, body)
    # fields are zero while ids follow from the content around them
    model.clear_fields(body, fields.pos)
    model.clear(body, words[0], 8)
    ids = _content_ids(labels, body)
    model.copy_numbers(data, body, fields.pos, target)
    _clear(labels, cleared, body)
    news = fields.pos[is_new].astype(np.int64)
    model.write_u32(body, news, np.full(len(news), model.NEW, np.int64))
    del news
    return find_places(labels, fields, target, is_new, words), ids


def _list_cleared(labels: Labels, data: Bytes8) -> list[tuple[int, int]]:
    """Places and sizes of the derived tables, which the body leaves out."""
    found = []
    for _, place, derived in decoder.derived_bytes(labels, data):
        if data[place : place + len(derived)].tobytes() != derived.tobytes():
            raise FormatError("labels: a derived table is another than the binary's")
        found.append((place, len(derived)))
    return found


def _clear(labels: Labels, cleared: list[tuple[int, int]], body: Bytes8) -> None:
    for place, size in cleared:
        body[place : place + size] = 0
    clear_measures(labels, body)


def _choose_words(found: tuple[Int64s, Int32s], turned: Int64s) -> tuple[Int64s, Int32s]:
    """The words to rewrite: the rule's, with the exceptions turned around."""
    pos, label = found
    if not is_in(turned, pos).all():
        raise FormatError("labels: an exception is no word that the binary has")
    keep = ~is_in(pos, turned)
    return pos[keep], label[keep]


def write_sites(
    labels: Labels, data: Bytes8, starts: Starts, ids: Int64s, turned: Int64s, body: Bytes8
) -> None:
    """Put ids into the sites that leave their function, or at `turned` places do not."""
    head = model.find_heads(labels)
    for region in _code_regions(labels):
        if starts.lookup.table is not None and kernel.rewrite_sites(
            data, body, region.offset, region.size, labels.machine, starts=starts.lookup.table,
            origin=starts.base, addr=region.addr, label_addr=labels.start, head=head, ids=ids,
            turned=turned,
        ):  # fmt: skip
            continue
        sites, label, leaves = _sites_by_rule(labels, region, data, starts, head)
        chosen = np.flatnonzero(leaves ^ is_in(sites.pos + region.offset, turned))
        sites, value = sites.select(chosen), ids[label[chosen]]
        value = np.where(sites.kind == BRANCH26, branch_values(value), value)
        write_values(body, region.offset, sites, value)


def counts_before(marks: Bools) -> NDArray[np.int32]:
    """How many marks stand before each place, and before the end."""
    count = np.zeros(len(marks) + 1, np.int32)
    np.cumsum(marks, out=count[1:])
    return count


def _content_ids(labels: Labels, masked: Bytes8) -> Int64s:
    """The ids that follow from contents without ids, and from the table alone."""
    rules = labels.rule
    labels.rule = np.where(rules == model.RULE_FULL, model.RULE_NONE, rules).astype(np.uint8)
    ids = model.derive_ids(labels, masked, masked)
    labels.rule = rules
    return ids


def _finish_ids(labels: Labels, places: Places, ids: Int64s, body: Bytes8) -> None:
    """The ids of functions and continuations, and of objects that are what they point to: those
    come in rounds, innermost first; `body` gets the ids that they need."""
    heads = model.find_heads(labels)
    _function_ids(labels, places.name_target, ids)
    model.continue_ids(labels, ids)
    pos, named = places.pos, places.target
    open_ = np.flatnonzero(labels.rule == model.RULE_FULL)
    start, size = model.key_ranges(labels, open_)
    low, high = np.searchsorted(pos, start), np.searchsorted(pos, start + size)
    del start, size
    written = np.zeros(labels.count, bool)
    for _ in range(DEPTH_LIMIT):
        if not len(open_):
            return
        known = ids[heads] != 0
        write_ids(body, places, ids, known & ~written)
        written = known
        missing = counts_before(~known[named])
        ready = missing[high] == missing[low]
        if not ready.any():
            raise FormatError("labels: objects that are what they point to point in a circle")
        now, open_, low, high = open_[ready], open_[~ready], low[~ready], high[~ready]
        ids[now] = model.content_ids(labels, now, body)
        model.continue_ids(labels, ids)
    if len(open_):
        raise FormatError(f"labels: objects are nested over {DEPTH_LIMIT} deep")


def _function_ids(labels: Labels, names: Int32s, ids: Int64s) -> None:
    """Functions by their names, as `decoder.function_ids` does it from the form."""
    functions = np.flatnonzero(labels.rule == model.RULE_NAME)
    if not len(functions):
        return
    order = decoder.functions_by_name_field(labels, functions, len(names))
    if (names[order] < 0).any():
        raise FormatError("labels: a function has no name")
    ids[functions] = model.name_ids(labels, ids[names[order]])
