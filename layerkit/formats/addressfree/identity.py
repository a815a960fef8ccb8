"""Which rule gives each label its id, so that an edit elsewhere never changes it.

An id is worth most when it follows from what the object *is*: a function's name, a type's hash, the
bytes of a string. Where that says too little (a pointer variable, a zeroed buffer, one of two equal
constants) it follows from what the object points to, from its symbol, or from who uses it first.
Whatever is chosen here is listed in the label table or follows by its rules; a worse choice costs
bytes of delta, never correctness.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from layerkit.errors import FormatError
from layerkit.formats.addressfree import decoder, model
from layerkit.formats.addressfree.model import Bytes8, Int32s, Int64s, Labels
from layerkit.formats.addressfree.rewriting import (
    Places,
    counts_before,
    write_ids,
)
from layerkit.formats.packed import count_nonzero
from layerkit.formats.sets import distinct, is_in

__all__ = ["References", "choose_ids"]

Bools = NDArray[np.bool_]
Uint64s = NDArray[np.uint64]

THIN: Final = 8  # bytes other than zero, fields masked: below it, content is no identity
ROUNDS: Final = 16  # how deep objects that are known by what they point to may be nested
LISTED_TRIES: Final = 1000
LISTED_SALT: Final = 7  # listed ids do not follow the form's salt
RECORD_SEED: Final = 2
NO_PLACE: Final = (1 << 31) - 1
BEFORE_USE, BEHIND_USE = 12, 12  # bytes of code that tell one use in a function from another


@dataclass(frozen=True, slots=True)
class References:
    """All that refers to a label: pattern fields, address words, code."""

    places: Places
    owned_pos: Int32s  # fields that name an object which belongs to a function
    owned_target: Int32s
    site_addr: Int64s  # ascending
    site_label: Int64s  # label, -1: not rewritten
    code: Bytes8  # the text with all sites zero
    code_addr: int


def choose_ids(
    labels: Labels,
    references: References,
    masked: Bytes8,
    body: Bytes8,
    symbols: Mapping[int, bytes],
    patterns: Patterns,
    writable: Bools,
) -> Int64s:
    """Ids of all labels; settles `labels.rule` and `labels.explicit`, and writes ids into `body`.
    `masked`: the file with all fields and words zero. `symbols`: address -> name, the same in every
    build. `writable`: regions of variables, whose content is only where they start."""
    return _Choice(labels, references, masked, body, symbols, patterns, writable).run()


@dataclass(frozen=True, slots=True)
class Patterns:
    """Patterns of objects that have an identity of their own: they are what they point to, or they
    belong to the function whose record first names them."""

    pointers: Collection[int]
    owned: Collection[int]


class _Choice:
    """One run. `final` says which labels have their id."""

    def __init__(
        self,
        labels: Labels,
        references: References,
        masked: Bytes8,
        body: Bytes8,
        symbols: Mapping[int, bytes],
        patterns: Patterns,
        writable: Bools,
    ) -> None:
        self.labels = labels
        self.references = references
        self.masked, self.body = masked, body
        self.symbols = symbols
        self.is_pointer = np.isin(labels.pattern, sorted(patterns.pointers))
        self.is_owned = np.isin(labels.pattern, sorted(patterns.owned))
        self.writable: Bools = writable[labels.region_of]
        self.offsets = labels.offsets()
        every = np.arange(labels.count)
        self.sizes = model.object_sizes(labels, every)
        self.key_start, self.key_size = model.key_ranges(labels, every)
        self.cont: Bools = labels.rule == model.RULE_CONT
        self.head = model.find_heads(labels)
        self.final = np.zeros(labels.count, bool)
        self.written = self.final.copy()  # whose ids `body` has
        self.listed: set[int] = set()  # open labels that no rule fits
        self.seeds: dict[int, int] = {}
        none = np.zeros(0, np.int64)
        # functions, and the label of each one's name
        self.function_names: tuple[Int64s, Int32s] = (none, none.astype(np.int32))

    def run(self) -> Int64s:
        labels = self.labels
        labels.rule[~self._referred() & (labels.rule == model.RULE_CONTENT)] = model.RULE_NONE
        self._sort_references()
        wanted = labels.rule == model.RULE_CONTENT
        by_content, by_reference = self._plan(wanted)
        labels.rule[wanted & ~by_content] = model.RULE_NONE
        self.ids = model.derive_ids(labels, self.masked, self.body)
        ends = np.isin(labels.rule, (model.RULE_END, model.RULE_START))
        self._settle(np.flatnonzero(ends))
        first = self._primaries(np.flatnonzero(by_content), self.ids)
        self._settle(first)
        by_content[first] = False
        self.ids[by_content] = 0
        self._name_functions()
        # an equal of another: what it points to may tell them apart, but not under a key
        retry = by_content & (self.reference_count > 0) & (self.key_size == self.sizes)
        by_reference |= retry
        self.listed |= set(np.flatnonzero(wanted & ~self.final & ~by_reference).tolist())
        self._seed_by_records()
        self._seed_by_users()
        self._list(self.seeds)
        open_ = np.flatnonzero(by_reference & ~self.final)
        moved = True
        while len(open_) and moved:
            count = len(open_)
            open_ = self._by_reference(open_)
            self._seed_by_holders()
            moved = len(open_) < count or bool(self.seeds)
            self._list(self.seeds)
        self.listed |= set(open_.tolist())
        self._seed_by_users()
        self._seed_by_surroundings()
        self._list(self.seeds)
        labels.explicit = self.ids[labels.rule == model.RULE_EXPLICIT].astype(np.uint32)
        model.continue_ids(labels, self.ids)
        self._settle_continuations()
        write_ids(self.body, self.references.places, self.ids, np.ones(labels.count, bool))
        return self.ids

    # --- who refers to what

    def _referred(self) -> Bools:
        labels, refs = self.labels, self.references
        referred = np.zeros(labels.count, bool)
        referred[refs.places.target] = True
        referred[refs.site_label[refs.site_label >= 0]] = True
        # names give functions their ids; a continuation needs its head
        named = refs.places.name_target
        referred[named[named >= 0]] = True
        referred[self.head[self.cont & referred]] = True
        return referred

    def _sort_references(self) -> None:
        """References inside data in file order, how many each object holds, and where code first
        uses each object."""
        refs, labels = self.references, self.labels
        self.ref_pos, self.ref_target = refs.places.pos, refs.places.target
        low = np.searchsorted(self.ref_pos, self.offsets)
        high = np.searchsorted(self.ref_pos, self.offsets + self.sizes)
        self.key_low, self.key_high = low.astype(np.int32), high.astype(np.int32)
        self.reference_count = np.where(self.offsets >= 0, self.key_high - self.key_low, 0)
        del low, high
        keyed = np.flatnonzero(self.key_size != self.sizes)
        begin, size = self.key_start[keyed], self.key_size[keyed]
        self.key_low[keyed] = np.searchsorted(self.ref_pos, begin)
        self.key_high[keyed] = np.searchsorted(self.ref_pos, begin + size)
        used = np.flatnonzero(refs.site_label >= 0).astype(np.int32)
        self.used = used
        self.used_label = self.head[refs.site_label[used]].astype(np.int32)
        self.first_use = np.full(labels.count, NO_PLACE, np.int32)
        np.minimum.at(self.first_use, self.used_label, np.arange(len(used), dtype=np.int32))
        addr = refs.site_addr[used]
        owner = self.head[np.maximum(np.searchsorted(labels.start, addr, side="right") - 1, 0)]
        pairs = self.used_label.astype(np.int64) * labels.count + owner
        pairs = distinct(pairs) // max(1, labels.count)
        self.user_count = np.bincount(pairs, minlength=labels.count).astype(np.int32)
        self.user = owner.astype(np.int32)

    def _plan(self, wanted: Bools) -> tuple[Bools, Bools]:
        """Which labels are known by content, and which by what they point to."""
        labels = self.labels
        self.solid = self._solid_bytes()
        keyed = self.key_size != self.sizes
        named = np.zeros(labels.count, bool)
        symbols = np.fromiter(self.symbols.keys(), np.int64, len(self.symbols))
        named[is_in(labels.start, symbols)] = True
        pointer = self.is_pointer
        thin = (self.solid < THIN) & ~keyed
        points = self.reference_count > 0
        # a variable is its name, or what its only user calls it; so is a literal that only points
        by_name = named & (self.writable | (thin & points)) & ~pointer
        by_name |= thin & self.writable & ((self.user_count == 1) | ~points) & ~pointer
        thin &= points
        by_name |= self.is_owned
        by_reference = pointer | (thin & ~by_name)
        by_content = ~by_reference & ~by_name & (self.solid > 0)
        return wanted & by_content, wanted & by_reference

    def _solid_bytes(self) -> Int64s:
        """Bytes other than zero in each object, fields masked."""
        count = np.zeros(self.labels.count, np.int64)
        backed = np.flatnonzero((self.offsets >= 0) & (self.labels.size > 0))
        if not len(backed):
            return count
        count[backed] = count_nonzero(self.masked, self.offsets[backed], self.labels.size[backed])
        total = count.copy()
        np.add.at(total, self.head[self.cont], count[self.cont])
        return total

    # --- rules

    def _settle(self, label: Int64s) -> None:
        self.final[label] = True

    def _primaries(self, label: Int64s, ids: Int64s) -> Int64s:
        """Of labels with equal ids the one that code uses first: code that is added comes behind
        the packages that it imports, so the older one mostly keeps its id."""
        equal = is_in(ids[label], _repeated(ids[label]))
        alone, several = label[~equal], label[equal]
        place = several[np.lexsort((several, self.first_use[several], ids[several]))]
        value = ids[place]
        first = np.concatenate(([True], value[1:] != value[:-1])) if len(place) else value > 0
        chosen = np.concatenate([alone, place[first]])
        return np.sort(chosen[~is_in(ids[chosen], self.ids[self.final])])

    def _name_functions(self) -> None:
        """Functions by name. Of several with one name (the wrapper of another calling convention,
        cmd/compile/internal/ssagen/abi.go) the largest has it, the others are listed."""
        labels, refs = self.labels, self.references
        functions = np.flatnonzero(labels.rule == model.RULE_NAME)
        target = refs.places.name_target
        if (target < 0).any():
            labels.rule[functions] = model.RULE_NONE
            self.listed.update(functions.tolist())
            return
        label = target[decoder.functions_by_name_field(labels, functions, len(target))]
        self.function_names = (functions, label)
        # a name that is the equal of another needs an id before its function can have one
        if len(again := distinct(label[self.ids[label] == 0])):
            found = model.hash_content(self.masked, self.offsets[again], self.sizes[again])
            self._list(dict(zip(again.tolist(), found.tolist(), strict=True)))
        value = model.name_ids(labels, self.ids[label])
        order = np.lexsort((functions, -self.sizes[functions], value))
        ranked = value[order]
        first = np.concatenate(([True], ranked[1:] != ranked[:-1])) if len(order) else ranked > 0
        chosen = np.zeros(len(functions), bool)
        chosen[order[first]] = True
        chosen &= ~is_in(value, self.ids[self.final])
        self.ids[functions[chosen]] = value[chosen]
        self._settle(functions[chosen])
        rest = np.flatnonzero(~chosen)
        if not len(rest):
            return
        place = labels.start[functions[rest]] - refs.code_addr
        code = model.hash_content(refs.code, place, self.sizes[functions[rest]])
        for at, seed in zip(rest.tolist(), code.tolist(), strict=True):
            self.seeds[int(functions[at])] = int(value[at]) + (seed << 1)
        self._list(self.seeds)

    def _by_reference(self, open_: Int64s) -> Int64s:
        """Objects whose targets all have ids: hash those ids. Returns what stays open."""
        labels = self.labels
        for _ in range(ROUNDS):
            model.continue_ids(labels, self.ids)
            reach = self.final | (self.cont & self.final[self.head])
            write_ids(self.body, self.references.places, self.ids, reach & ~self.written)
            self.written = reach
            bad = counts_before(~reach[self.ref_target])
            low, high = self.key_low[open_], self.key_high[open_]
            is_ready = (high > low) & (bad[high] == bad[low])
            ready = open_[is_ready]
            if not len(ready):
                return open_
            open_ = open_[~is_ready]
            labels.rule[ready] = model.RULE_FULL
            value = np.zeros(labels.count, np.int64)
            value[ready] = model.content_ids(labels, ready, self.body)
            chosen = self._primaries(ready, value)
            self.ids[chosen] = value[chosen]
            self._settle(chosen)
            left = ready[~self.final[ready]]
            labels.rule[left] = model.RULE_NONE
            self.listed.update(left.tolist())
        return open_

    # --- listed ids

    def _list(self, seeds: dict[int, int]) -> None:
        """Give each label of `seeds` an id that follows from its seed and is nobody's; equal seeds
        by rank. Empties `seeds`."""
        ranks: dict[int, int] = {}
        label = np.fromiter(seeds.keys(), np.int64, len(seeds))
        ranked = []
        for seed in seeds.values():
            ranks[seed] = rank = ranks.get(seed, 0) + 1
            ranked.append((seed * 1_000_003 + rank) & 0xFFFFFFFFFFFFFFFF)
        values = model.fold_id(np.array(ranked, np.uint64), LISTED_SALT)
        others = self.ids[self.final]
        gone: set[int] = set(values[is_in(values, others)].tolist())
        for at, (seed, value) in enumerate(zip(ranked, values.tolist(), strict=True)):
            if value in gone:
                for _ in range(LISTED_TRIES):
                    if value not in gone and not (others == value).any():
                        break
                    seed = (seed + 0x1_0000_0001) & 0xFFFFFFFFFFFFFFFF
                    value = model.fold_one(seed, LISTED_SALT)
                else:
                    raise FormatError("more labels than there are ids")
                values[at] = value
            gone.add(value)
        self.ids[label] = values
        self.labels.rule[label] = model.RULE_EXPLICIT
        self.final[label] = True
        self.listed -= seeds.keys()
        seeds.clear()

    def _seed_by_users(self) -> None:
        """Seeds from an object's symbol, or from its content, the first function that uses it, and
        the code that does."""
        content = self._listed_contents()
        is_listed = np.zeros(self.labels.count, bool)
        is_listed[list(self.listed)] = True
        for label in sorted(self.listed):
            if name := self.symbols.get(int(self.labels.start[label])):
                self.seeds[label] = model.hash_bytes(name)
        chosen = np.flatnonzero(is_listed[self.used_label])
        owner = self.user[chosen]
        use = self._uses(chosen)
        for label, function, code in zip(
            self.used_label[chosen].tolist(), self.ids[owner].tolist(), use.tolist(), strict=True
        ):
            if label not in self.seeds:
                self.seeds[label] = (function << 20) + content[label] * 31 + code

    def _uses(self, chosen: Int64s) -> Uint64s:
        """Hash of the code around each of the chosen uses."""
        refs = self.references
        place = refs.site_addr[self.used[chosen]] - refs.code_addr
        begin = np.maximum(place - BEFORE_USE, 0)
        end = np.minimum(place + BEHIND_USE, len(refs.code))
        return model.hash_content(refs.code, begin, end - begin)

    def _seed_by_records(self) -> None:
        """Seeds from the name of the first function whose record refers to an object."""
        refs = self.references
        before = np.searchsorted(refs.places.name_pos, refs.owned_pos, side="right") - 1
        names = refs.places.name_target[before]
        for label, name, has_name in zip(
            refs.owned_target.tolist(), names.tolist(), (before >= 0).tolist(), strict=True
        ):
            if label in self.listed and label not in self.seeds and has_name and name >= 0:
                self.seeds[label] = (int(self.ids[name]) << 8) + RECORD_SEED

    def _listed_contents(self) -> dict[int, int]:
        """Hash of the masked content of each listed label, 0 where there is none but zeros."""
        label = np.array(sorted(self.listed), np.int64)
        found = dict.fromkeys(label.tolist(), 0)
        backed = label[self.offsets[label] >= 0]
        hashes = model.hash_content(self.masked, self.key_start[backed], self.key_size[backed])
        solid = self.solid[backed] > 0
        found.update(zip(backed[solid].tolist(), hashes[solid].tolist(), strict=True))
        return found

    def _seed_by_holders(self) -> None:
        """Seeds from the first object with an id that points to a listed one, and where in it."""
        is_listed = np.zeros(self.labels.count, bool)
        is_listed[list(self.listed)] = True
        target = self.head[self.ref_target]
        chosen = np.flatnonzero(is_listed[target])
        backed = np.flatnonzero(self.offsets >= 0)
        place = backed[np.argsort(self.offsets[backed], kind="stable")]
        at = np.searchsorted(self.offsets[place], self.ref_pos[chosen], "right") - 1
        holder = self.head[place[at]]
        inside = self.ref_pos[chosen] - self.offsets[holder]
        for label, at, where in zip(
            target[chosen].tolist(), holder.tolist(), inside.tolist(), strict=True
        ):
            if label not in self.seeds and self.final[at] and at != label:
                self.seeds[label] = (int(self.ids[at]) << 21) + where

    def _seed_by_surroundings(self) -> None:
        """Seeds from an object's size and the content of what lies before it: the last resort."""
        labels = self.labels
        label = np.array(sorted(self.listed - self.seeds.keys()), np.int64)
        before = np.maximum(label - 1, 0)
        backed = self.offsets[before] >= 0
        own = np.zeros(len(label), np.uint64)
        own[backed] = model.hash_content(
            self.masked, self.offsets[before[backed]], labels.size[before[backed]]
        )
        mixed = model.mix(own, labels.size[label].astype(np.uint64))
        self.seeds.update(zip(label.tolist(), mixed.tolist(), strict=True))

    def _settle_continuations(self) -> None:
        """An object gets a listed id when a label that goes it on has somebody's: the label itself
        cannot, or it would be an object of its own."""
        labels, ids = self.labels, self.ids
        moved = np.zeros(labels.count, bool)
        for _ in range(ROUNDS):
            live = np.flatnonzero(ids)
            clash = live[is_in(ids[live], _repeated(ids[live]))]
            if not len(clash):
                break
            self.final[live] = True
            order = clash[np.argsort(ids[clash], kind="stable")]
            same = np.flatnonzero(ids[order][1:] == ids[order][:-1])
            one, other = order[same], order[same + 1]
            head = self.head[np.where(self.cont[one], one, other)]
            moved[head] = True
            self._list({label: int(ids[label]) for label in head.tolist()})
            model.continue_ids(labels, ids)
        if not moved.any():
            return
        # who follows from such an id keeps its own, but no rule gives it any more
        moved = moved[self.head]
        functions, names = self.function_names
        renamed = functions[moved[names]]
        labels.rule[renamed[labels.rule[renamed] == model.RULE_NAME]] = model.RULE_EXPLICIT
        bad = counts_before(moved[self.ref_target])
        follows = (labels.rule == model.RULE_FULL) & (bad[self.key_high] > bad[self.key_low])
        labels.rule[follows] = model.RULE_EXPLICIT
        labels.explicit = ids[labels.rule == model.RULE_EXPLICIT].astype(np.uint32)


def _repeated(values: Int64s) -> Int64s:
    """Those that are there more than once, ascending."""
    ranked = np.sort(values)
    return distinct(ranked[1:][ranked[1:] == ranked[:-1]])
