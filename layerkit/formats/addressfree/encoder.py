"""From a Go binary to its label table and the form's body. All the cleverness is here: where to
cut, and which id rule keeps an object's id the same when its neighbours move.

The result is only a proposal: `addressfree.encode` decodes it and compares before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerkit.errors import FormatError
from layerkit.formats.addressfree import decoder, model
from layerkit.formats.addressfree.discover import P_FUNCTION, P_PLAIN, Discovery, discover
from layerkit.formats.addressfree.model import Bytes8, Int64s, Labels, Pattern, Region
from layerkit.formats.elf import MACHINE_ARM64, Elf
from layerkit.formats.golang import parse_go_tables
from layerkit.formats.sites import (
    AMD64,
    ARM64,
    BRANCH26,
    Candidates,
    branch_values,
    disassemble,
    find_candidates,
    read_targets,
    read_values,
    write_values,
)

__all__ = ["Encoded", "encode_binary"]

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A form before it is serialized; `skip` are file positions that look like sites."""

    labels: Labels
    body: bytes
    skip: Int64s


@dataclass(frozen=True, slots=True)
class _Sites:
    """References from the text: where, the address each points to, and the function it is in."""

    offset: int  # of the text in the file
    addr: int
    found: Candidates
    target: Int64s
    function: Int64s


def encode_binary(elf: Elf, symbols: Mapping[int, tuple[bytes, int]], salt: int) -> Encoded:
    """Encode a Go binary. `symbols`: address -> (name, size) of data objects, may be empty.
    Raises FormatError where Go's tables do not hold together."""
    go = parse_go_tables(elf)
    machine = ARM64 if elf.machine == MACHINE_ARM64 else AMD64
    sites = _code_sites(elf, go.entries, machine)
    found = discover(go, sites.target)
    labels = _cut(found, sites, symbols)
    labels.salt, labels.machine = salt, machine
    return _Encoding(found, labels, sites, symbols).run()


def _code_sites(elf: Elf, entries: Int64s, machine: int) -> _Sites:
    """True sites that the candidate rule also finds, without those inside one function."""
    section = elf.section(".text")
    if section is None or not section.in_file:
        raise FormatError("no .text section")
    text = elf.bytes_of(section)
    found = find_candidates(text, machine)
    if machine == AMD64:
        found = found.select(np.isin(found.pos, disassemble(text, section.addr)))
    target = read_targets(np.frombuffer(text, np.uint8), 0, found, section.addr)
    function = np.searchsorted(entries, found.pos + section.addr, side="right") - 1
    local = np.searchsorted(entries, target, side="right") - 1 == function
    far = ~(local & (target >= section.addr) & (target < section.end_addr))
    return _Sites(section.offset, section.addr, found.select(far), target[far], function[far])


def _cut(found: Discovery, sites: _Sites, symbols: Mapping[int, tuple[bytes, int]]) -> Labels:
    """The label table: cut at every object and every target."""
    pclntab = found.go.pclntab
    target = sites.target[(sites.target < pclntab.addr) | (sites.target >= pclntab.end_addr)]
    objects = dict(found.objects)
    for addr, (_, extent) in symbols.items():
        objects.setdefault(addr, (extent, P_PLAIN))
    addrs = np.array(sorted(objects), np.int64)
    sizes = np.array([objects[a][0] for a in addrs.tolist()], np.int64)
    region_addr = np.array([r.addr for r in found.regions], np.int64)
    region_end = region_addr + np.array([r.size for r in found.regions], np.int64)
    starts = np.unique(
        np.concatenate(
            [
                target,
                found.word_target,
                addrs,
                (addrs + sizes)[sizes > 0],
                region_addr,
                *found.targets,
            ]
        )
    )
    region = np.searchsorted(region_addr, starts, side="right") - 1
    keep = (region >= 0) & (starts < region_end[region])
    starts, region = starts[keep], region[keep]
    # every region ends with an empty label
    order_addr = np.concatenate([starts, region_end])
    order_region = np.concatenate([region, np.arange(len(region_addr))])
    is_end = np.concatenate([np.zeros(len(starts), bool), np.ones(len(region_addr), bool)])
    order = np.lexsort((is_end, order_addr, order_region))
    starts, region, is_end = order_addr[order], order_region[order], is_end[order]
    size: Int64s = np.where(is_end, 0, np.append(starts[1:], starts[-1]) - starts)
    rule = np.where(is_end, model.RULE_END, model.RULE_CONTENT).astype(np.int64)
    first = np.concatenate(([True], region[1:] != region[:-1]))
    table = np.array([_is_table(found, r) for r in found.regions])
    rule[first & ~is_end & table[region]] = model.RULE_START
    pattern = _spread_objects(found, objects, starts, size, rule, is_end, region)
    patterns = tuple(key for key, _ in found.patterns)
    return Labels(
        tuple(found.regions), found.kinds, patterns, region, starts, size, pattern, rule,
        np.zeros(0, np.uint32),
    )  # fmt: skip


def _is_table(found: Discovery, region: Region) -> bool:
    """Regions whose first label stands for a table that changes with every build."""
    section = next(s for s in found.go.elf.sections if s.addr <= region.addr < s.end_addr)
    named = section.name in (
        ".typelink",
        ".itablink",
        ".go.module",
        ".go.buildinfo",
        ".go.fipsinfo",
    )
    return named or section is found.go.pclntab


def _spread_objects(
    found: Discovery,
    objects: Mapping[int, tuple[int, int]],
    starts: Int64s,
    size: Int64s,
    rule: Int64s,
    is_end: Bools,
    region: Int64s,
) -> Int64s:
    """Patterns of labels; the later parts of a sized object become its continuation."""
    keys = list(found.patterns)
    pattern = np.zeros(len(starts), np.int64)
    text = np.array([r.is_text for r in found.regions])[region]
    pattern[text & is_end] = P_FUNCTION
    real = np.flatnonzero(~is_end)
    addrs = np.array(sorted(objects), np.int64)
    at = np.searchsorted(starts[real], addrs)
    at[at == len(real)] = 0
    for addr, index in zip(addrs.tolist(), real[at].tolist(), strict=True):
        if starts[index] != addr:
            continue
        extent, which = objects[addr]
        pattern[index] = which
        part = index + 1
        while extent and part < len(starts) and starts[part] < addr + extent and not is_end[part]:
            if int(starts[part]) in objects and rule[part] != model.RULE_CONT and which == P_PLAIN:
                break
            rule[part] = model.RULE_CONT
            whole = keys[which][0]
            if whole.fixed:
                pattern[part] = found.pattern(_shift(whole, int(starts[part]) - addr))
                keys = list(found.patterns)
            part += 1
    # a cut inside a function goes on that function
    inner = text & ~is_end & (pattern != P_FUNCTION)
    head = np.maximum.accumulate(np.where(pattern == P_FUNCTION, np.arange(len(starts)), -1))
    rule[inner & (head >= 0)] = model.RULE_CONT
    rule[text & ~is_end & (pattern == P_FUNCTION)] = model.RULE_NAME
    return pattern


def _shift(pattern: Pattern, by: int) -> Pattern:
    """What is left of a pattern `by` bytes into its object."""
    return Pattern(fixed=tuple((o - by, k) for o, k in pattern.fixed if o >= by))


class _Encoding:
    """One run: from cut labels to ids and body."""

    def __init__(
        self,
        found: Discovery,
        labels: Labels,
        sites: _Sites,
        symbols: Mapping[int, tuple[bytes, int]],
    ) -> None:
        self.labels = labels
        self.symbols = symbols
        self._identities: dict[int, tuple[int, int]] = {}
        self.data: Bytes8 = np.frombuffer(found.go.elf.data, np.uint8)
        self.fields = model.expand_fields(labels)
        self.value = model.read_u32(self.data, self.fields.pos)
        self.field_target = self._targets_of_fields()
        self.word_pos, self.word_label = self._exact(found.word_pos, found.word_target)
        self.sites = sites
        pclntab = found.go.pclntab
        self.site_label = self._find(sites.target)
        self.site_label[(sites.target >= pclntab.addr) & (sites.target < pclntab.end_addr)] = -1

    def _find(self, addr: Int64s) -> Int64s:
        """The label that starts at each address; -1: none."""
        start = self.labels.start
        at = np.searchsorted(start, addr, side="right") - 1
        return np.where((at >= 0) & (start[at] == addr), at, -1)

    def _exact(self, pos: Int64s, addr: Int64s) -> tuple[Int64s, Int64s]:
        label = self._find(addr)
        return pos[label >= 0], label[label >= 0]

    def _targets_of_fields(self) -> Int64s:
        kinds, regions = self.labels.kinds, self.labels.regions
        base = np.array([regions[k.base_region].addr + k.base_delta for k in kinds], np.int64)
        shift = np.array([k.shift for k in kinds], np.int64)
        zoned = np.array(
            [k.counter >= 0 and k.zone == k.base_region and k.zone_pattern >= 0 for k in kinds]
        )
        kind = self.fields.kind
        addr = base[kind] + (self.value << shift[kind])
        target = self._find(addr)
        nothing = (self.value == 0xFFFFFFFF) | ((self.value == 0) & ~zoned[kind])
        return np.where(nothing, -1, target)

    def run(self) -> Encoded:
        labels = self.labels
        is_new = self._new_fields()
        self.body = self.data.copy()
        self._clear_derived(self.body)
        masked = self.body.copy()
        model.write_u32(masked, self.fields.pos, np.zeros(len(self.fields.pos), np.int64))
        model.write_u64(masked, self.word_pos, np.zeros(len(self.word_pos), np.int64))
        self.masked = masked
        model.write_u32(
            self.body, self.fields.pos[is_new], np.full(int(is_new.sum()), model.NEW, np.int64)
        )
        self.by_id = (self.field_target >= 0) & ~is_new
        ids = self._choose_ids()
        self._write_ids(ids, np.ones(labels.count, bool))
        skip = self._write_sites(ids)
        return Encoded(labels, self.body.tobytes(), skip)

    def _new_fields(self) -> Bools:
        """Fields that name the next label of their zone (see `model.resolve_new`)."""
        is_new = np.zeros(len(self.fields.pos), bool)
        for members, zone, pattern in decoder.counters(self.labels):
            chosen = np.flatnonzero(np.isin(self.fields.kind, members))
            _, ordinal_of = decoder.zone_ordinals(self.labels, zone, pattern)
            named = self.field_target[chosen]
            ordinal = np.where(named >= 0, ordinal_of[named], -1)
            before = np.concatenate(([-1], np.maximum.accumulate(ordinal)))[:-1]
            is_new[chosen] = (ordinal >= 0) & (ordinal == before + 1)
        return is_new

    def _clear_derived(self, body: Bytes8) -> None:
        """Zero what the decoder recomputes, where its rule gives the same bytes."""
        labels = self.labels
        for label, at, found in list(decoder.derived_bytes(labels, self.data)):
            if self.data[at : at + len(found)].tobytes() == found.tobytes():
                body[at : at + len(found)] = 0
            else:
                labels.pattern[label] = P_PLAIN  # another linker's idea of the table: as it is

    # --- ids

    def _choose_ids(self) -> Int64s:
        labels = self.labels
        referred = self._referred()
        labels.rule[~referred & np.isin(labels.rule, (model.RULE_CONTENT,))] = model.RULE_NONE
        wanted = labels.rule == model.RULE_CONTENT
        offsets = labels.offsets()
        ids = model.derive_ids(labels, self.masked, self.body)
        unique = _unique(ids) & (offsets >= 0)
        final = np.isin(labels.rule, (model.RULE_END, model.RULE_START))
        taken = set(ids[final].tolist())
        good = wanted & unique
        final |= good
        ids[wanted & ~good] = 0
        taken |= set(ids[good].tolist())
        self._name_functions(ids, final, taken)
        self._full_ids(ids, final, taken, wanted)
        self._explicit_ids(ids, final, taken, wanted | (labels.rule == model.RULE_EXPLICIT))
        labels.explicit = ids[labels.rule == model.RULE_EXPLICIT].astype(np.uint32)
        model.continue_ids(labels, ids)
        self._settle_continuations(ids)
        return ids

    def _referred(self) -> Bools:
        labels = self.labels
        referred = np.zeros(labels.count, bool)
        referred[self.field_target[self.by_id]] = True
        referred[self.word_label] = True
        referred[self.site_label[self.site_label >= 0]] = True
        # names give functions their ids; a continuation needs its head
        names = [i for i, k in enumerate(labels.kinds) if k.is_name]
        named = self.field_target[np.isin(self.fields.kind, names)]
        referred[named[named >= 0]] = True
        cont = labels.rule == model.RULE_CONT
        head = np.maximum.accumulate(np.where(cont, 0, np.arange(labels.count)))
        referred[head[cont & referred]] = True
        return referred

    def _name_functions(self, ids: Int64s, final: Bools, taken: set[int]) -> None:
        """Functions by name; the second of a name is left for an explicit id."""
        labels = self.labels
        functions = np.flatnonzero(labels.rule == model.RULE_NAME)
        names = [i for i, k in enumerate(labels.kinds) if k.is_name]
        target = self.field_target[np.isin(self.fields.kind, names)]
        if (target < 0).any():
            labels.rule[functions] = model.RULE_EXPLICIT
            return
        order = decoder.functions_by_name_field(labels, functions, len(target))
        label = target[order]
        value = model.name_ids(labels, ids[label])
        first = np.zeros(len(functions), bool)
        first[np.unique(label, return_index=True)[1]] = True
        known = first & (ids[label] != 0)
        for index, (function, ok, own) in enumerate(
            zip(functions.tolist(), known.tolist(), value.tolist(), strict=True)
        ):
            if ok and own not in taken:
                ids[function] = own
                final[function] = True
                taken.add(own)
            else:
                labels.rule[function] = model.RULE_EXPLICIT
                self._identities[function] = (int(label[index]), index)

    def _full_ids(self, ids: Int64s, final: Bools, taken: set[int], wanted: Bools) -> None:
        """Objects that differ only in what they point to: hash the ids in them."""
        labels = self.labels
        offsets, sizes = labels.offsets(), model.object_sizes(labels)
        pos = np.concatenate([self.fields.pos[self.by_id], self.word_pos])
        target = np.concatenate([self.field_target[self.by_id], self.word_label])
        order = np.argsort(pos, kind="stable")
        pos, target = pos[order], target[order]
        cont = labels.rule == model.RULE_CONT
        head = np.maximum.accumulate(np.where(cont, 0, np.arange(labels.count)))
        for _ in range(4):
            model.continue_ids(labels, ids)
            reach = final | (cont & final[head])
            self._write_ids(ids, reach)
            open_ = np.flatnonzero(wanted & ~final & (offsets >= 0))
            if not len(open_):
                return
            bad = np.concatenate(([0], np.cumsum(~reach[target])))
            low = np.searchsorted(pos, offsets[open_])
            high = np.searchsorted(pos, offsets[open_] + sizes[open_])
            ready = open_[(high > low) & (bad[high] == bad[low])]
            if not len(ready):
                return
            hashes = model.hash_content(self.body, offsets[ready], sizes[ready])
            value = model.fold_id(hashes, labels.salt)
            fresh = _unique(value) & ~np.isin(value, np.fromiter(taken, np.int64, len(taken)))
            if not fresh.any():
                return
            chosen = ready[fresh]
            labels.rule[chosen] = model.RULE_FULL
            ids[chosen] = value[fresh]
            final[chosen] = True
            taken |= set(value[fresh].tolist())

    def _explicit_ids(self, ids: Int64s, final: Bools, taken: set[int], wanted: Bools) -> None:
        """The rest: by symbol, by first referrer, or by rank among equals."""
        labels = self.labels
        left = np.flatnonzero(wanted & ~final)
        seeds = self._referrer_seeds(ids, left)
        around = self._surroundings()
        ranks: dict[int, int] = {}
        for label in left.tolist():
            labels.rule[label] = model.RULE_EXPLICIT
            start = int(labels.start[label])
            if start in self.symbols:
                seed = _hash_bytes(self.symbols[start][0])
            elif label in self._identities:
                name, _ = self._identities[label]
                seed = int(ids[name]) + 1
            else:
                seed = seeds.get(label) or int(around[label])
            ranks[seed] = rank = ranks.get(seed, 0) + 1
            ids[label] = self._fresh(seed * 1_000_003 + rank, taken)

    def _surroundings(self) -> NDArray[np.uint64]:
        """For each label a hash of its size and of the content of the label before it."""
        labels = self.labels
        offsets = labels.offsets()
        backed = np.flatnonzero(offsets >= 0)
        own = np.zeros(labels.count, np.uint64)
        own[backed] = model.hash_content(self.masked, offsets[backed], labels.size[backed])
        before = np.concatenate((np.zeros(1, np.uint64), own[:-1]))
        return model.mix(before, labels.size.astype(np.uint64))

    def _fresh(self, seed: int, taken: set[int]) -> int:
        """An id from a seed that nobody has."""
        while True:
            value = int(model.fold_id(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64), 7)[0])
            if value not in taken:
                taken.add(value)
                return value
            seed += 0x1_0000_0001

    def _referrer_seeds(self, ids: Int64s, left: Int64s) -> dict[int, int]:
        """Seeds from the first function that refers to an object, and the object's ordinal among
        the new ones there; else from the first object with an id that points to it."""
        labels = self.labels
        is_left = np.zeros(labels.count, bool)
        is_left[left] = True
        seeds: dict[int, int] = {}
        target = self.site_label
        cont = labels.rule == model.RULE_CONT
        head = np.maximum.accumulate(np.where(cont, 0, np.arange(labels.count)))
        chosen = np.flatnonzero(target >= 0)
        chosen = chosen[is_left[head[target[chosen]]]]
        place = self.sites.found.pos[chosen] + self.sites.addr
        owner = np.searchsorted(labels.start, place, side="right") - 1
        count: dict[int, int] = {}
        for label, function in zip(
            head[target[chosen]].tolist(), head[owner].tolist(), strict=True
        ):
            if label not in seeds:
                count[function] = ordinal = count.get(function, 0) + 1
                seeds[label] = (int(ids[function]) << 20) + ordinal
        offset = labels.offsets()
        backed = np.flatnonzero(offset >= 0)
        place = backed[np.argsort(offset[backed], kind="stable")]
        sorted_offset = offset[place]
        for pos, label in zip(self.word_pos.tolist(), self.word_label.tolist(), strict=True):
            label = int(head[label])
            if is_left[label] and label not in seeds:
                at = int(place[np.searchsorted(sorted_offset, pos, side="right") - 1])
                if ids[head[at]]:
                    seeds[label] = (int(ids[head[at]]) << 21) + pos - int(offset[head[at]])
        return seeds

    def _settle_continuations(self, ids: Int64s) -> None:
        """A continuation whose id somebody has gets an explicit one."""
        labels = self.labels
        live = np.flatnonzero(ids)
        order = live[np.argsort(ids[live], kind="stable")]
        same = np.flatnonzero(ids[order][1:] == ids[order][:-1])
        if not len(same):
            return
        taken = set(ids[live].tolist())
        for at in same.tolist():
            label = next(
                (x for x in order[at : at + 2].tolist() if labels.rule[x] == model.RULE_CONT), None
            )
            if label is not None:
                labels.rule[label] = model.RULE_EXPLICIT
                ids[label] = self._fresh(int(ids[label]), taken)
        labels.explicit = ids[labels.rule == model.RULE_EXPLICIT].astype(np.uint32)

    # --- body

    def _write_ids(self, ids: Int64s, ready: Bools) -> None:
        """Put ids into the fields and words whose targets are ready."""
        now = self.by_id.copy()
        now[now] = ready[self.field_target[now]]
        model.write_u32(self.body, self.fields.pos[now], ids[self.field_target[now]])
        words = ready[self.word_label]
        pos = self.word_pos[words]
        model.write_u32(self.body, pos, ids[self.word_label[words]])
        model.write_u32(self.body, pos + 4, np.full(len(pos), model.TAG, np.int64))

    def _write_sites(self, ids: Int64s) -> Int64s:
        """Rewrite code; returns the positions that the decoder must pass over."""
        known = np.flatnonzero(self.site_label >= 0)
        sites, label = self.sites.found.select(known), self.site_label[known]
        offset = self.sites.offset
        value = np.where(sites.kind == BRANCH26, branch_values(ids[label]), ids[label])
        original = read_values(self.data, offset, sites)
        write_values(self.body, offset, sites, value)
        none = np.zeros(0, np.int64)
        for _ in range(4):  # taking a site back can change what its neighbour looks like
            hits = decoder.text_hits(self.labels, self.body, ids, none)
            hit_pos = np.concatenate([none, *(h.sites.pos + h.region.offset for h in hits)])
            hit_next = np.concatenate([none, *(h.sites.next_pos + h.region.offset for h in hits)])
            hit_label = np.concatenate([none, *(h.label for h in hits)])
            at = np.searchsorted(hit_pos, sites.pos + offset)
            at[at == len(hit_pos)] = 0
            if not len(hit_pos):
                fine = np.zeros(len(sites.pos), bool)
            else:
                fine = (hit_pos[at] == sites.pos + offset) & (hit_label[at] == label)
                fine &= hit_next[at] == sites.next_pos + offset
            if fine.all():
                break
            write_values(self.body, offset, sites.select(~fine), original[~fine])
            sites, label, original = sites.select(fine), label[fine], original[fine]
        return hit_pos[~np.isin(hit_pos, sites.pos + offset)]


def _unique(ids: Int64s) -> Bools:
    """Which values occur once."""
    _, inverse, count = np.unique(ids, return_inverse=True, return_counts=True)
    return np.asarray(count[inverse] == 1)


def _hash_bytes(name: bytes) -> int:
    data = np.frombuffer(name, np.uint8)
    return int(model.hash_content(data, np.array([0]), np.array([len(name)]))[0])
