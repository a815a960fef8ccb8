"""What a label table says about a binary: which fields, words and code sites name which labels, and
the body that follows. The way from a binary and a finished label table to the form; the encoder
finds the table, this applies it, and knows no more of Go than the decoder.

Words and sites are found by rule: an aligned word, or a field of code that leaves its function,
that holds the address of a label. Where the encoder decided otherwise an exception says so, so that
a node with another way to find them makes the same form.
"""

from __future__ import annotations

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
    "exceptions_of",
    "field_targets",
    "find_labels",
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


def find_labels(labels: Labels, addr: Int64s) -> Int64s:
    """The label that starts at each address, the last of several; -1: none."""
    if not labels.count:
        return np.full(len(addr), -1, np.int64)
    at = np.searchsorted(labels.start, addr, side="right") - 1
    return np.where((at >= 0) & (labels.start[at] == addr), at, -1)


def field_targets(labels: Labels, fields: Fields, value: Int64s) -> Int64s:
    """The label that each field of the binary names; -1: it is a number. Zero and all ones mean
    "none", but for fields that count through their zone from its start."""
    kinds, regions = labels.kinds, labels.regions
    base = np.array([regions[k.base_region].addr + k.base_delta for k in kinds], np.int64)
    shift = np.array([k.shift for k in kinds], np.int64)
    zoned = np.array(
        [k.counter >= 0 and k.zone == k.base_region and k.zone_pattern >= 0 for k in kinds], bool
    )
    kind = fields.kind
    target = find_labels(labels, base[kind] + (value << shift[kind]))
    nothing = (value == 0xFFFFFFFF) | ((value == 0) & ~zoned[kind])
    return np.where(nothing, -1, target)


def new_fields(labels: Labels, fields: Fields, target: Int64s) -> Bools:
    """Fields that name the next label of their zone (see `model.resolve_new`)."""
    is_new = np.zeros(len(fields.pos), bool)
    for members, zone, pattern in decoder.counters(labels):
        chosen = np.flatnonzero(np.isin(fields.kind, members))
        _, ordinal_of = decoder.zone_ordinals(labels, zone, pattern)
        named = target[chosen]
        ordinal = np.where(named >= 0, ordinal_of[named], -1)
        before = np.concatenate(([-1], np.maximum.accumulate(ordinal)))[:-1]
        is_new[chosen] = (ordinal >= 0) & (ordinal == before + 1)
    return is_new


def write_ids(
    body: Bytes8, pos: Int64s, target: Int64s, words: tuple[Int64s, Int64s], ids: Int64s
) -> None:
    """Put ids into fields, and tagged ids into words (positions, labels)."""
    model.write_u32(body, pos, ids[target])
    model.write_u32(body, words[0], ids[words[1]])
    model.write_u32(body, words[0] + 4, np.full(len(words[0]), model.TAG, np.int64))


# --- words and sites by rule


def exceptions_of(labels: Labels, data: Bytes8, word_pos: Int64s, site_pos: Int64s) -> Exceptions:
    """Where the encoder's words and sites (file positions) differ from the rule's."""
    words, _ = _words_by_rule(labels, data)
    sites = np.concatenate(
        [np.zeros(0, np.int64), *(pos[far] for _, pos, _, far in _sites_by_rule(labels, data))]
    )
    return Exceptions(np.setxor1d(words, word_pos), np.setxor1d(sites, site_pos))


def _words_by_rule(labels: Labels, data: Bytes8) -> tuple[Int64s, Int64s]:
    """Positions of the aligned words that hold the address of a label, and the labels."""
    none = np.zeros(0, np.int64)
    pos_parts, label_parts = [none], [none]
    for region in labels.regions:
        if not region.has_words or region.offset < 0:
            continue
        first = region.offset + (-region.addr) % 8
        pos = first + 8 * np.arange(max(0, (region.offset + region.size - first) // 8))
        label = find_labels(labels, model.read_u64(data, pos))
        pos_parts.append(pos[label >= 0])
        label_parts.append(label[label >= 0])
    pos, label = np.concatenate(pos_parts), np.concatenate(label_parts)
    order = np.argsort(pos, kind="stable")
    return pos[order], label[order]


def _heads(labels: Labels) -> Int64s:
    cont = labels.rule == model.RULE_CONT
    return np.maximum.accumulate(np.where(cont, 0, np.arange(labels.count, dtype=np.int64)))


def _sites_by_rule(labels: Labels, data: Bytes8) -> list[tuple[Candidates, Int64s, Int64s, Bools]]:
    """For each region of code: its candidates with the file position and label of each (-1: none),
    and whether it leaves its function."""
    found = []
    heads = _heads(labels)
    for region in labels.regions:
        if not region.is_text or region.offset < 0:
            continue
        code = data[region.offset : region.offset + region.size]
        sites = find_candidates(code, labels.machine)
        label = find_labels(labels, read_targets(code, 0, sites, region.addr))
        own = heads[np.searchsorted(labels.start, sites.pos + region.addr, side="right") - 1]
        far = (label >= 0) & (heads[label] != own)
        found.append((sites, sites.pos + region.offset, label, far))
    return found


# --- the body


def rewrite(labels: Labels, data: Bytes8, exceptions: Exceptions) -> Bytes8:
    """The form's body. Raises FormatError where the table is not one of this binary."""
    fields = model.expand_fields(labels)
    target = field_targets(labels, fields, model.read_u32(data, fields.pos))
    is_new = new_fields(labels, fields, target)
    words = _words(labels, data, exceptions.words)
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
    by_id = (target >= 0) & ~is_new
    pos, named = fields.pos[by_id], target[by_id]
    ids = _ids(labels, fields, target, masked, body, (pos, named), words)
    write_ids(body, pos, named, words, ids)
    changed = exceptions.sites
    for sites, at, label, far in _sites_by_rule(labels, data):
        if not len(at):
            continue
        chosen = np.flatnonzero((label >= 0) & (far ^ is_in(at, changed)))
        value = ids[label[chosen]]
        value = np.where(sites.kind[chosen] == BRANCH26, branch_values(value), value)
        write_values(body, int(at[0] - sites.pos[0]), sites.select(chosen), value)
    return body


def _words(labels: Labels, data: Bytes8, turned: Int64s) -> tuple[Int64s, Int64s]:
    """The words to rewrite: the rule's, with the exceptions turned around."""
    pos, label = _words_by_rule(labels, data)
    keep = ~is_in(pos, turned)
    if not is_in(turned, pos).all():
        raise FormatError("labels: an exception is no word that the binary has")
    return pos[keep], label[keep]


def _ids(
    labels: Labels,
    fields: Fields,
    target: Int64s,
    masked: Bytes8,
    body: Bytes8,
    by_id: tuple[Int64s, Int64s],
    words: tuple[Int64s, Int64s],
) -> Int64s:
    """All ids. Objects that are what they point to come in rounds, innermost first; `body` gets
    the ids that they need."""
    heads = _heads(labels)
    full = labels.rule == model.RULE_FULL
    rules = labels.rule
    labels.rule = np.where(full, model.RULE_NONE, rules)
    ids = model.derive_ids(labels, masked, body)
    labels.rule = rules
    _function_ids(labels, fields, target, ids)
    model.continue_ids(labels, ids)
    pos = np.concatenate([by_id[0], words[0]])
    named = np.concatenate([by_id[1], words[1]])
    order = np.argsort(pos, kind="stable")
    pos, named = pos[order], named[order]
    start, size = model.key_ranges(labels)
    low, high = np.searchsorted(pos, start), np.searchsorted(pos, start + size)
    open_ = np.flatnonzero(full)
    while len(open_):
        known = ids[heads] != 0
        write_ids(body, by_id[0], by_id[1], words, ids)
        missing = np.concatenate(([0], np.cumsum(~known[named])))
        ready = missing[high[open_]] == missing[low[open_]]
        if not ready.any():
            raise FormatError("labels: objects that are what they point to point in a circle")
        now, open_ = open_[ready], open_[~ready]
        hashed = np.isin(rules, (model.RULE_CONTENT, model.RULE_FULL))
        labels.rule = np.where(hashed, model.RULE_NONE, rules)
        labels.rule[now] = model.RULE_FULL
        ids[now] = model.derive_ids(labels, masked, body)[now]
        labels.rule = rules
        model.continue_ids(labels, ids)
    return ids


def _function_ids(labels: Labels, fields: Fields, target: Int64s, ids: Int64s) -> None:
    """Functions by their names, as `decoder.function_ids` does it from the form."""
    functions = np.flatnonzero(labels.rule == model.RULE_NAME)
    if not len(functions):
        return
    chosen = np.array([k.is_name for k in labels.kinds], bool)[fields.kind]
    names = target[chosen]
    order = decoder.functions_by_name_field(labels, functions, len(names))
    if (names[order] < 0).any():
        raise FormatError("labels: a function has no name")
    ids[functions] = model.name_ids(labels, ids[names[order]])
