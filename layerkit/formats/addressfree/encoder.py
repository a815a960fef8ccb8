"""From a Go binary to its label table and the form's body. All the cleverness is here: where to
cut, and which id rule keeps an object's id the same when its neighbours move.

The result is only a proposal: `addressfree.encode` decodes it and compares before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from layerkit.errors import FormatError
from layerkit.formats.addressfree import decoder, model, rewriting
from layerkit.formats.addressfree.discover import P_FUNCTION, P_PLAIN, Discovery, discover
from layerkit.formats.addressfree.identity import Patterns, References, choose_ids
from layerkit.formats.addressfree.measures import clear_measures
from layerkit.formats.addressfree.model import Bytes8, Int32s, Int64s, Labels, Pattern, Region
from layerkit.formats.addressfree.rewriting import Exceptions
from layerkit.formats.elf import MACHINE_ARM64, SHF_WRITE, Elf
from layerkit.formats.golang import parse_go_tables
from layerkit.formats.sets import distinct, is_in
from layerkit.formats.sites import (
    AMD64,
    ARM64,
    BRANCH26,
    Candidates,
    branch_values,
    find_sites,
    read_targets,
    read_values,
    write_values,
)

__all__ = ["Encoded", "encode_binary"]

Bools = NDArray[np.bool_]


# Names that count through a package, and so change with an edit: cmd/compile/internal/staticinit
# (stmp), walk and reflectdata (typeAssert, interfaceSwitch), go1.20 to go1.27
_NUMBERED: Final = re.compile(rb"\.\.[A-Za-z]+[._]\d+$")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A form before it is serialized; `skip` are file positions that look like sites in the form,
    `exceptions` what looks otherwise in the binary than the encoder decided."""

    labels: Labels
    body: Bytes8
    skip: Int64s
    exceptions: Exceptions


@dataclass(frozen=True, slots=True)
class _Sites:
    """References from the text: where, and the address each points to."""

    offset: int  # of the text in the file
    addr: int
    found: Candidates
    target: Int64s


def encode_binary(elf: Elf, symbols: Mapping[int, tuple[bytes, int]], salt: int) -> Encoded:
    """Encode a Go binary. `symbols`: address -> (name, size) of data objects, may be empty.
    Raises FormatError where Go's tables do not hold together."""
    go = parse_go_tables(elf)
    machine = ARM64 if elf.machine == MACHINE_ARM64 else AMD64
    sites = _code_sites(elf, go.entries, machine)
    addrs = np.fromiter(symbols, np.int64, len(symbols))
    found = discover(go, sites.target, addrs)
    labels = _cut(found, sites, symbols)
    labels.salt, labels.machine = salt, machine
    encoding = _Encoding(found, labels, sites, symbols)
    del found, go, sites, labels  # thousands of small objects, which the rest does without
    return encoding.run()


def _code_sites(elf: Elf, entries: Int64s, machine: int) -> _Sites:
    """True sites that the candidate rule also finds, without those inside one function."""
    section = elf.section(".text")
    if section is None or not section.in_file:
        raise FormatError("no .text section")
    text = elf.bytes_of(section)
    found = find_sites(text, section.addr, machine)
    target = read_targets(np.frombuffer(text, np.uint8), 0, found, section.addr)
    function = np.searchsorted(entries, found.pos + section.addr, side="right") - 1
    local = np.searchsorted(entries, target, side="right") - 1 == function
    far = ~(local & (target >= section.addr) & (target < section.end_addr))
    return _Sites(section.offset, section.addr, found.select(far), target[far])


def _cut(found: Discovery, sites: _Sites, symbols: Mapping[int, tuple[bytes, int]]) -> Labels:
    """The label table: cut at every object and every target."""
    pclntab = found.go.pclntab
    target = sites.target[(sites.target < pclntab.addr) | (sites.target >= pclntab.end_addr)]
    for addr, (_, extent) in symbols.items():
        found.objects.setdefault(addr, (extent, P_PLAIN))
    objects = _columns(found.objects)
    addrs, sizes, _ = objects
    region_addr = np.array([r.addr for r in found.regions], np.int64)
    region_end = region_addr + np.array([r.size for r in found.regions], np.int64)
    starts = distinct(
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
    number = np.arange(len(region_addr))
    behind = np.searchsorted(region, number, side="right")
    starts = np.insert(starts, behind, region_end)
    is_end = np.insert(np.zeros(len(region), bool), behind, True)
    region = np.insert(region, behind, number)
    size: Int64s = np.where(is_end, 0, np.append(starts[1:], starts[-1]) - starts)
    rule = np.where(is_end, model.RULE_END, model.RULE_CONTENT).astype(np.uint8)
    first = np.concatenate(([True], region[1:] != region[:-1]))
    table = np.array([_is_table(found, r) for r in found.regions])
    rule[first & ~is_end & table[region]] = model.RULE_START
    pattern = _spread_objects(found, objects, starts, rule, is_end, region)
    patterns = tuple(key for key, _ in found.patterns)
    return Labels(
        tuple(found.regions), found.kinds, patterns, region.astype(np.int32), starts, size,
        pattern, rule,
        np.zeros(0, np.uint32), measures=found.measures,
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
    go = found.go
    names = region.addr - go.pclntab.addr in (go.name_off, go.file_off)
    return named or (section is go.pclntab and not names)


def _is_writable(found: Discovery, region: Region) -> bool:
    section = next(s for s in found.go.elf.sections if s.addr <= region.addr < s.end_addr)
    return bool(section.flags & SHF_WRITE)


def _columns(objects: Mapping[int, tuple[int, int]]) -> tuple[Int64s, Int64s, Int64s]:
    """Addresses ascending, sizes and patterns."""
    count = len(objects)
    addrs = np.fromiter(objects, np.int64, count)
    rest = np.fromiter(chain.from_iterable(objects.values()), np.int64, 2 * count)
    order = np.argsort(addrs)
    return addrs[order], rest[0::2][order], rest[1::2][order]


def _spread_objects(
    found: Discovery,
    objects: tuple[Int64s, Int64s, Int64s],
    starts: Int64s,
    rule: Bytes8,
    is_end: Bools,
    region: Int64s,
) -> Int32s:
    """Patterns of labels; the later parts of a sized object become its continuation. `objects`: as
    `_columns` gives them."""
    keys = list(found.patterns)
    pattern = np.zeros(len(starts), np.int32)
    text = np.array([r.is_text for r in found.regions])[region]
    pattern[text & is_end] = P_FUNCTION
    real = np.flatnonzero(~is_end)
    addrs, sizes, patterns = objects
    at = np.searchsorted(starts[real], addrs)
    at[at == len(real)] = 0
    place = real[at]
    behind = np.minimum(place + 1, len(starts) - 1)
    exact = starts[place] == addrs
    cut = exact & (starts[behind] < addrs + sizes) & ~is_end[behind]  # few objects have parts
    for addr, extent, which, index in zip(
        addrs[cut].tolist(), sizes[cut].tolist(), patterns[cut].tolist(), place[cut].tolist(),
        strict=True,
    ):  # fmt: skip
        part = index + 1
        while extent and part < len(starts) and starts[part] < addr + extent and not is_end[part]:
            if (
                int(starts[part]) in found.objects
                and rule[part] != model.RULE_CONT
                and which == P_PLAIN
            ):
                break
            rule[part] = model.RULE_CONT
            whole = keys[which][0]
            if whole.fixed or whole.repeated:
                pattern[part] = found.pattern(_shift(whole, int(starts[part]) - addr))
                keys = list(found.patterns)
            part += 1
    pattern[place[exact]] = patterns[exact]
    # a cut inside a function goes on that function; code without any (.plt) is on its own
    inner = text & ~is_end & (pattern != P_FUNCTION)
    head = np.maximum.accumulate(np.where(pattern == P_FUNCTION, np.arange(len(starts)), -1))
    rule[inner & (head >= 0) & (region[head] == region)] = model.RULE_CONT
    rule[text & ~is_end & (pattern == P_FUNCTION)] = model.RULE_NAME
    return pattern


def _shift(pattern: Pattern, by: int) -> Pattern:
    """What is left of a pattern `by` bytes into its object."""
    start = pattern.start - by
    if start < 0:
        start = start % pattern.stride if pattern.stride else 0
    fixed = tuple((offset - by, kind) for offset, kind in pattern.fixed if offset >= by)
    return Pattern(fixed, start, pattern.stride, pattern.repeated)


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
        self.names = {
            addr: name for addr, (name, _) in symbols.items() if not _NUMBERED.search(name)
        }
        self.known = Patterns(found.pointers, found.owned)
        self.writable = np.array([_is_writable(found, region) for region in found.regions])
        self.data: Bytes8 = np.frombuffer(found.go.elf.data, np.uint8)
        self.starts = rewriting.find_starts(labels)
        word_label = self.starts.find(found.word_target)
        self.word_pos = found.word_pos[word_label >= 0]
        self.word_label = word_label[word_label >= 0].astype(np.int32)
        self.text_offset, self.text_addr = sites.offset, sites.addr
        self.sites = sites.found
        pclntab = found.go.pclntab
        self.site_label = self.starts.find(sites.target)
        self.site_label[(sites.target >= pclntab.addr) & (sites.target < pclntab.end_addr)] = -1

    def run(self) -> Encoded:
        labels = self.labels
        references, masked = self._refer()
        ids = choose_ids(
            labels, references, masked, self.body, self.names, self.known, self.writable
        )
        del references, masked
        sites, skip = self._write_sites(ids)
        exceptions = rewriting.find_exceptions(labels, self.data, self.starts, self.word_pos, sites)
        return Encoded(labels, self.body, skip, exceptions)

    def _refer(self) -> tuple[References, Bytes8]:
        """All references but those of code, and the file with its fields and words zero; makes
        the body, in which counting fields are written."""
        labels = self.labels
        fields = model.expand_fields(labels)
        value = model.read_fields(self.data, fields.pos)
        target, is_new = rewriting.find_targets(labels, self.starts, fields, value)
        del value
        self.body = self.data.copy()
        self._clear_derived(self.body)
        clear_measures(labels, self.body)
        masked = self.body.copy()
        model.clear_fields(masked, fields.pos)
        model.clear(masked, self.word_pos, 8)
        news = fields.pos[is_new].astype(np.int64)
        model.write_u32(self.body, news, np.full(len(news), model.NEW, np.int64))
        owned = np.isin(labels.pattern, sorted(self.known.owned))
        to_owned = np.flatnonzero((target >= 0) & owned[target])
        references = References(
            rewriting.find_places(labels, fields, target, is_new, (self.word_pos, self.word_label)),
            fields.pos[to_owned],
            target[to_owned],
            self.sites.pos + self.text_addr,
            self.site_label,
            self._masked_code(),
            self.text_addr,
        )
        return references, masked

    def _masked_code(self) -> Bytes8:
        """The text with every site zero."""
        region = next(r for r in self.labels.regions if r.is_text and r.addr == self.text_addr)
        code = self.data[region.offset : region.offset + region.size].copy()
        write_values(code, 0, self.sites, np.zeros(len(self.sites.pos), np.int64))
        return code

    def _clear_derived(self, body: Bytes8) -> None:
        """Zero what the decoder recomputes, where its rule gives the same bytes."""
        labels = self.labels
        for label, at, found in list(decoder.derived_bytes(labels, self.data)):
            if self.data[at : at + len(found)].tobytes() == found.tobytes():
                body[at : at + len(found)] = 0
            else:
                labels.pattern[label] = P_PLAIN  # another linker's idea of the table: as it is

    # --- body

    def _write_sites(self, ids: Int64s) -> tuple[Int64s, Int64s]:
        """Rewrite code; returns where, and the positions that the decoder must pass over."""
        known = np.flatnonzero(self.site_label >= 0)
        sites, label = self.sites.select(known), self.site_label[known]
        offset = self.text_offset
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
        written = sites.pos + offset
        return written, hit_pos[~is_in(hit_pos, written)]
