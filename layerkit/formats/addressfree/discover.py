"""What the encoder knows about a Go binary: regions, objects with their patterns, and targets.

Only the encoder needs this. Everything found here reaches the decoder as labels, patterns and
kinds, so a new Go release is new knowledge here and nothing there.
Sources: src/runtime/symtab.go, src/runtime/runtime2.go (_func), src/runtime/stkframe.go
(stackObjectRecord), src/internal/abi/symtab.go (FUNCDATA), go1.20 to go1.27.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from typing import Final

import numpy as np

from layerkit.errors import FormatError
from layerkit.formats import kernel
from layerkit.formats.addressfree import model
from layerkit.formats.addressfree.measures import Place, find_measures
from layerkit.formats.addressfree.model import Int64s, Kind, Measure, Pattern, Region
from layerkit.formats.addressfree.words import MODULEDATA_SIZE, accept_words, candidate_words
from layerkit.formats.elf import SHF_EXECINSTR, Section
from layerkit.formats.golang import FUNC_SIZE, GoTables
from layerkit.formats.gotypes import INTERFACE, NAME, TYPE, TypeObject, walk_types
from layerkit.formats.sets import distinct, is_in

__all__ = ["Discovery", "discover"]

(
    K_ENTRY,
    K_RECORD,
    K_NAME,
    K_INLINE_NAME,
    K_PCTAB,
    K_CU,
    K_FILE,
    K_TYPE,
    K_TEXT,
    K_RODATA,
    K_RECORD_ENTRY,
    K_FUNCDATA,  # and one more for each further group
) = range(12)
P_PLAIN, P_FUNCTION, P_FUNCTION_NAME = 0, 1, 2
FUNCDATA_STACK_OBJECTS, FUNCDATA_INLINE_TREE, FUNCDATA_WRAP_INFO = 2, 3, 7
PCDATA_INLINE: Final = 2
STACK_OBJECTS = Pattern(start=8, stride=16, repeated=((12, K_RODATA),))
INLINE_TREE = Pattern(stride=16, repeated=((4, K_INLINE_NAME),))
WRAP_INFO = Pattern(fixed=((0, K_TEXT),))
# Funcdata by index: what lies there, and a mark that keeps equal patterns apart. The linker lays
# each group out in the order of the functions; the two stack maps (0, 1) go in turns.
FUNCDATA_GROUPS: Final = (
    (Pattern(), 3), (STACK_OBJECTS, 0), (INLINE_TREE, 0), (Pattern(), 4), (Pattern(), 5),
    (Pattern(), 6), (WRAP_INFO, 0), (Pattern(), 7),
)  # fmt: skip
FIRST_FUNCDATA_COUNTER: Final = 7
NO_FUNCDATA: Final = 0xFFFFFFFF
STACK_OBJECT_LIMIT: Final = 4096  # of one function; above, it is no such table
FIPS_INFO_SIZE: Final = 120  # magic, sum, own address, four ranges: go1.24 to go1.27
MASK_LIMIT: Final = 128 << 3 << 3  # bytes of object; larger ones have masks built at run time
SECTION_LIMIT: Final = 256  # that are loaded; Go makes some 30, and time goes with their square
PCHEADER_SIZE: Final = 72  # bytes: debug/gosym/pclntab.go, go1.20 to go1.27
TYPE_HASH: Final = (16, 4)  # of a type descriptor: internal/abi/type.go Type.Hash
ITAB_KEY: Final = (0, 20)  # interface, type, and the type's hash: internal/abi/iface.go ITab
ITAB_FUNCTIONS: Final = 24  # offset


@dataclass(slots=True)
class Discovery:
    """Regions, kinds, and objects: address -> (size or 0 for up to the next cut, pattern)."""

    go: GoTables
    regions: list[Region] = field(default_factory=list)
    kinds: tuple[Kind, ...] = ()
    patterns: dict[tuple[Pattern, int], int] = field(default_factory=dict)
    objects: dict[int, tuple[int, int]] = field(default_factory=dict)
    targets: list[Int64s] = field(default_factory=list)
    word_pos: Int64s = field(default_factory=lambda: np.zeros(0, np.int64))
    word_target: Int64s = field(default_factory=lambda: np.zeros(0, np.int64))
    measures: tuple[Measure, ...] = ()
    owned: set[int] = field(default_factory=set)  # of objects that are their first function's
    pointers: set[int] = field(default_factory=set)  # patterns of objects that are what they name

    def pattern(self, pattern: Pattern, mark: int = 0) -> int:
        """Index of a pattern; `mark` keeps equal patterns apart."""
        return self.patterns.setdefault((pattern, mark), len(self.patterns))

    def region_at(self, addr: int) -> int:
        """Index of the region that starts at or holds the address."""
        for index, region in enumerate(self.regions):
            if region.addr <= addr < region.addr + max(1, region.size):
                return index
        return len(self.regions) - 1


def discover(go: GoTables, code_targets: Int64s, symbols: Int64s) -> Discovery:
    """All the encoder's knowledge but the code itself; `code_targets` are where code points,
    `symbols` the addresses of named data objects."""
    found = Discovery(go)
    for mark in (P_PLAIN, P_FUNCTION, P_FUNCTION_NAME):
        found.pattern(Pattern(), mark)
    _make_regions(found)
    _make_kinds(found)
    _functions(found)
    _cu_table(found)
    pos, target = candidate_words(go, found.regions)
    taken = _types(found, np.concatenate([target, code_targets]), pos, target)
    _fips_info(found)
    objects = np.fromiter(found.objects, np.int64, len(found.objects))
    known = np.concatenate([code_targets, symbols, objects, *found.targets])
    fine = accept_words(go, pos, target, known) & ~is_in(pos, taken)
    found.word_pos, found.word_target = pos[fine], target[fine]
    found.measures = find_measures(found.regions, list(_number_places(found)), go.elf.data)
    return found


def _number_places(found: Discovery) -> Iterator[Place]:
    """Numbers in ELF's headers, pcHeader and moduledata that say where things begin and end.
    Sources: ELF-64 object file format 1.5, figures 3 and 6; src/runtime/symtab.go, go1.27."""
    go = found.go
    elf = go.elf
    for first, size, count, fields in (
        (elf.segment_table_offset, 56, len(elf.segments), (8, 16, 24, 32, 40)),
        (elf.section_table_offset, 64, len(elf.sections), (16, 24, 32)),
    ):
        for index in range(count):
            for offset in fields:
                yield Place(-1, first + size * index + offset, 8)
    region = found.region_at(go.pclntab.addr)
    for offset in range(8, PCHEADER_SIZE, 8):
        yield Place(region, offset, 8)
    words = set(found.word_pos.tolist())
    region = found.region_at(go.moduledata_addr)
    home = found.regions[region]
    first = go.moduledata_addr - home.addr
    for offset in range(first, min(first + MODULEDATA_SIZE, home.size - 7), 8):
        if home.offset + offset not in words:
            yield Place(region, offset, 8)


def _make_regions(found: Discovery) -> None:
    go = found.go
    loaded = sorted((s for s in go.elf.sections if s.addr and s.size), key=lambda s: s.addr)
    if len(loaded) > SECTION_LIMIT:
        raise FormatError(f"{len(loaded)} sections are loaded, which no Go linker makes")
    for section in loaded:
        if section is go.pclntab:
            _pclntab_regions(found, section)
            continue
        text = bool(section.flags & SHF_EXECINSTR)
        words = not text and section.in_file and section.name != ".typelink"
        offset = section.offset if section.in_file else -1
        found.regions.append(Region(section.addr, offset, section.size, words, text))


def _pclntab_regions(found: Discovery, section: Section) -> None:
    go = found.go
    cuts = [0, go.name_off, go.cu_off, go.file_off, go.pctab_off, go.func_off]
    cuts += [int(go.records[0]), _records_end(go), section.size]
    for space, (low, high) in enumerate(pairwise(cuts), 1):
        if high > low:
            addr, offset = section.addr + low, section.offset + low
            found.regions.append(Region(addr, offset, high - low, low == 0, False, space))


def _func_u32(go: GoTables, offset: int) -> Int64s:
    data = np.frombuffer(go.pcln, np.uint8)
    return model.read_u32(data, go.records + offset)


def _func_counts(go: GoTables) -> tuple[Int64s, Int64s]:
    """npcdata and nfuncdata of each function."""
    data = np.frombuffer(go.pcln, np.uint8)
    return _func_u32(go, 28), data[go.records + 43].astype(np.int64)


def _records_end(go: GoTables) -> int:
    pcdata, funcdata = _func_counts(go)
    return int((go.records + FUNC_SIZE + 4 * (pcdata + funcdata)).max())


def _make_kinds(found: Discovery) -> None:
    go, start = found.go, found.go.pclntab.addr
    text = found.region_at(go.text)
    names, cus = found.region_at(start + go.name_off), found.region_at(start + go.cu_off)
    files, pctab = found.region_at(start + go.file_off), found.region_at(start + go.pctab_off)
    functab = found.region_at(start + go.func_off)
    records = found.region_at(start + int(go.records[0]))

    def kind(
        addr: int,
        counter: int = -1,
        zone: int = -1,
        pattern: int = -1,
        *,
        shift: int = 0,
        name: bool = False,
    ) -> Kind:
        base = found.region_at(addr)
        delta = addr - found.regions[base].addr
        return Kind(base, delta, shift, counter, zone, pattern, name)

    found.kinds = (
        kind(go.text, 0, text, P_FUNCTION),
        kind(found.regions[functab].addr, 1, records),
        kind(found.regions[names].addr, 2, names, P_FUNCTION_NAME, name=True),
        kind(found.regions[names].addr),
        kind(found.regions[pctab].addr, 3, pctab),
        kind(found.regions[cus].addr, 5, cus, shift=2),
        kind(found.regions[files].addr, 6, files),
        kind(go.types),
        kind(go.text),
        kind(go.rodata),
        kind(go.text, 4, text, P_FUNCTION),
        *(
            kind(go.gofunc, counter, found.region_at(go.gofunc), found.pattern(*group))
            for counter, group in enumerate(FUNCDATA_GROUPS, FIRST_FUNCDATA_COUNTER)
        ),
    )


def _funcdata_group(index: int) -> int:
    """Which of FUNCDATA_GROUPS a funcdata index belongs to."""
    return min(max(0, index - 1), len(FUNCDATA_GROUPS) - 1)


def _functions(found: Discovery) -> None:
    """Functab, _func records, names, pctab blobs, and what funcdata points to."""
    go, base = found.go, found.go.pclntab.addr
    found.objects.update(dict.fromkeys(go.entries[:-1].tolist(), (0, P_FUNCTION)))
    name_addr = base + go.name_off
    names = _func_u32(go, 4) + name_addr
    found.objects.update(dict.fromkeys(distinct(names).tolist(), (0, P_FUNCTION_NAME)))
    table = Pattern(start=0, stride=8, repeated=((0, K_ENTRY), (4, K_RECORD)))
    found.objects[base + go.func_off] = (8 * go.func_count + 4, found.pattern(table))

    pcdata, funcdata = _func_counts(go)
    data = np.frombuffer(go.pcln, np.uint8)
    shapes, first, which = np.unique(pcdata << 8 | funcdata, return_index=True, return_inverse=True)
    made = np.zeros(len(shapes), np.int64)
    for index in np.argsort(first).tolist():
        made[index] = found.pattern(_record_pattern(*divmod(int(shapes[index]), 256)))
    rows = zip(repeat(0), made[which].tolist(), strict=False)  # padding goes with the record
    found.objects.update(zip((go.records + base).tolist(), rows, strict=True))

    pctab = base + go.pctab_off
    offsets = [_func_u32(go, at) for at in (16, 20, 24)]
    for index in range(int(pcdata.max(initial=0))):
        offsets.append(model.read_u32(data, (go.records + FUNC_SIZE + 4 * index)[pcdata > index]))
    tables = distinct(np.concatenate(offsets))
    tables = tables[tables > 0]
    ends = table_ends(data[go.pctab_off : go.func_off], tables)
    sized = zip((ends - tables).tolist(), repeat(P_PLAIN), strict=False)
    found.objects.update(zip((tables + pctab).tolist(), sized, strict=True))
    first = go.records + FUNC_SIZE + 4 * pcdata
    for index in range(int(funcdata.max(initial=0))):
        value = distinct(model.read_u32(data, (first + 4 * index)[funcdata > index]))
        value = value[value != NO_FUNCDATA]
        group = found.pattern(*FUNCDATA_GROUPS[_funcdata_group(index)])
        for addr in (value + go.gofunc).tolist():
            found.objects.setdefault(addr, (0, group))
        found.targets.append(value + go.gofunc)
        _inside_funcdata(found, index, value + go.gofunc)
    size = go.pclntab.end_addr - go.findfunctab
    span = int(go.entries[-1]) - int(go.entries[0])
    want = 4 * -(-span // 4096) - (-span // 256)
    derived = found.pattern(Pattern(derived=model.DERIVED_FINDFUNCTAB))
    found.objects[go.findfunctab] = (want if want <= size or size < 0 else 0, derived)


def table_ends(pctab: model.Bytes8, starts: Int64s) -> Int64s:
    """Where each pc-value table ends: pairs of varints (value change, pc change), ended by a value
    change of 0 that is not the first. In arrays, all tables step together, one byte a round.
    Source: src/runtime/symtab.go step, go1.27."""
    done = kernel.table_ends(pctab, starts)
    if done is not None:
        return done
    data = np.append(pctab, np.zeros(1, np.uint8))
    ends = np.full(len(starts), len(pctab), np.int64)
    active = np.arange(len(starts))
    pos = starts.copy()
    is_value = np.ones(len(starts), bool)
    fresh = np.ones(len(starts), bool)  # at the first byte of a varint
    first = np.ones(len(starts), bool)  # in the first pair
    while len(active):
        byte = data[np.minimum(pos, len(pctab))]
        stop = (byte == 0) & is_value & fresh & ~first
        stop |= pos >= len(pctab)
        ends[active[stop]] = np.minimum(pos[stop] + 1, len(pctab))
        go_on = ~stop
        done = byte[go_on] < 0x80
        active, pos = active[go_on], pos[go_on] + 1
        first = first[go_on] & ~(done & ~is_value[go_on])
        is_value = is_value[go_on] ^ done
        fresh = done
    return ends


def _record_pattern(pcdata: int, funcdata: int) -> Pattern:
    fixed = [
        (0, K_RECORD_ENTRY),
        (4, K_NAME),
        (16, K_PCTAB),
        (20, K_PCTAB),
        (24, K_PCTAB),
        (32, K_CU),
    ]
    # in the order in which the linker lays the tables out: generatePctab in
    # src/cmd/link/internal/ld/pcln.go, go1.20 to go1.27
    order = sorted(range(pcdata), key=lambda index: index == PCDATA_INLINE)
    fixed += [(FUNC_SIZE + 4 * index, K_PCTAB) for index in order]
    first = FUNC_SIZE + 4 * pcdata
    fixed += [(first + 4 * index, K_FUNCDATA + _funcdata_group(index)) for index in range(funcdata)]
    return Pattern(fixed=tuple(fixed))


def _inside_funcdata(found: Discovery, index: int, addrs: Int64s) -> None:
    """Patterns of the funcdata blobs that hold places themselves."""
    go = found.go
    home = next((s for s in go.elf.sections if s.addr <= go.gofunc < s.end_addr), None)
    if home is None:
        return
    raw = np.frombuffer(go.elf.bytes_of(home), np.uint8)
    if index == FUNCDATA_INLINE_TREE:
        tree = found.pattern(INLINE_TREE)
        found.objects.update(dict.fromkeys(addrs.tolist(), (0, tree)))
        return
    if index == FUNCDATA_WRAP_INFO:
        info = found.pattern(WRAP_INFO)
        found.objects.update(dict.fromkeys(addrs.tolist(), (4, info)))
        return
    if index != FUNCDATA_STACK_OBJECTS:
        return
    records = found.pattern(STACK_OBJECTS)
    addrs = addrs[addrs + 8 <= home.addr + len(raw)]
    at = addrs - home.addr
    count = model.read_u64(raw, at)
    fine = (count >= 0) & (count < STACK_OBJECT_LIMIT)
    fine[fine] = (at + 8 + 16 * count)[fine] <= len(raw)
    addrs, at, count = addrs[fine], at[fine], count[fine]
    rows = zip((8 + 16 * count).tolist(), repeat(records), strict=False)
    found.objects.update(zip(addrs.tolist(), rows, strict=True))
    step = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    record = np.repeat(at + 8, count) + 16 * step
    _pointer_masks(
        found, model.read_u32(raw, record + 12) + go.rodata, model.read_u32(raw, record + 8)
    )


def _pointer_masks(found: Discovery, addrs: Int64s, pointer_bytes: Int64s) -> None:
    """GC masks: one bit for each word of the part of an object that holds pointers."""
    for addr, span in zip(addrs.tolist(), pointer_bytes.tolist(), strict=True):
        if 0 < span <= MASK_LIMIT:
            found.objects.setdefault(addr, ((span // 8 + 7) // 8, P_PLAIN))


def _cu_table(found: Discovery) -> None:
    """Compilation units list files; a function names its unit by a place in that list."""
    go, base = found.go, found.go.pclntab.addr
    files = np.frombuffer(go.pcln, "<u4", (go.file_off - go.cu_off) // 4, go.cu_off)
    used = distinct(files[files != 0xFFFFFFFF]).astype(np.int64)
    found.targets.append(used + base + go.file_off)
    pattern = found.pattern(Pattern(stride=4, repeated=((0, K_FILE),)))
    found.objects[base + go.cu_off] = (0, pattern)
    found.owned.add(pattern)
    units = distinct(_func_u32(go, 32)) * 4 + base + go.cu_off
    found.objects.update(dict.fromkeys(units.tolist(), (0, pattern)))
    names = np.frombuffer(go.pcln, np.uint8)
    inline = _inline_names(found, names)
    if len(inline):
        found.targets.append(distinct(inline) + base + go.name_off)


def _inline_names(found: Discovery, pcln: model.Bytes8) -> Int64s:
    """Name offsets in all inline trees; a tree runs to the next funcdata object."""
    go = found.go
    tree = found.pattern(INLINE_TREE)
    starts = np.array(sorted(a for a, (_, p) in found.objects.items() if p == tree), np.int64)
    home = next((s for s in go.elf.sections if s.addr <= go.gofunc < s.end_addr), None)
    if home is None or not len(starts):
        return np.zeros(0, np.int64)
    raw = np.frombuffer(go.elf.bytes_of(home), np.uint8)
    limit = home.addr + len(raw)  # addresses in damaged tables lie far outside
    starts = starts[(starts >= home.addr) & (starts < limit)]
    cuts = distinct(np.concatenate([*found.targets, np.array([limit, go.findfunctab])]))
    ends = np.minimum(cuts[np.searchsorted(cuts, starts, side="right")], limit)
    count = (ends - starts) // 16
    step = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    value = model.read_u32(raw, np.repeat(starts - home.addr + 4, count) + 16 * step)
    return value[value < go.cu_off - go.name_off]


def _fips_info(found: Discovery) -> None:
    """go:fipsinfo is one object with a sum that follows from the rest (go1.24)."""
    section = found.go.elf.section(".go.fipsinfo")
    if section is not None and section.size == FIPS_INFO_SIZE:
        derived = found.pattern(Pattern(derived=model.DERIVED_FIPS_SUM))
        found.objects[section.addr] = (section.size, derived)


def _types(found: Discovery, targets: Int64s, word_pos: Int64s, word_target: Int64s) -> Int64s:
    """Type descriptors reached from the targets, and itabs. Returns the file positions of words
    that are none, since they belong to fields."""
    go = found.go
    home = next((s for s in go.elf.sections if s.addr <= go.types < s.end_addr), None)
    if home is None or not home.in_file:
        return np.zeros(0, np.int64)
    seeds = [targets]
    link = go.elf.section(".typelink")
    if link is not None and link.size:
        offsets = np.frombuffer(go.elf.bytes_of(link)[: link.size // 4 * 4], "<i4")
        seeds.append(offsets.astype(np.int64) + go.types)
        table = found.pattern(Pattern(stride=4, repeated=((0, K_TYPE),)))
        found.objects[link.addr] = (link.size // 4 * 4, table)
    every = distinct(np.concatenate(seeds))
    every = every[(every >= home.addr) & (every < home.end_addr)]
    kinds = {NAME: K_TYPE, TYPE: K_TYPE}
    raw = np.frombuffer(go.elf.bytes_of(home), np.uint8)
    spots: list[int] = []  # offsets in the section of what names a type or a name
    texts: list[int] = []  # and of what names code
    masks: list[int] = []
    types = walk_types(go, home, every.tolist())
    # by the identity of the fields, which types of one shape share, and the size
    shapes: dict[tuple[int, int], tuple[int, list[int], list[int]]] = {}
    paths: dict[int, int] = {}  # size of a name with a package path -> its pattern
    for made in types:
        key = (id(made.fields), made.size)
        if key not in shapes:
            fixed = tuple((offset, kinds.get(what, K_TEXT)) for offset, what in sorted(made.fields))
            shapes[key] = (
                found.pattern(_fold_methods(fixed, made.size)),
                [offset for offset, kind in fixed if kind == K_TYPE],
                [offset for offset, kind in fixed if kind == K_TEXT],
            )
        shape, places, code = shapes[key]
        found.objects[made.addr] = (made.size, shape)
        at = made.addr - home.addr
        spots += [at + place for place in places]
        texts += [at + place for place in code]
        if made.mask:
            found.objects.setdefault(made.mask, (made.mask_size, P_PLAIN))
            masks.append(made.mask)
        for addr, size, has_path in made.names:
            # an unexported name ends with the offset of its package path's name
            path = P_PLAIN
            if has_path:
                if size not in paths:
                    paths[size] = found.pattern(Pattern(fixed=((size - 4, K_TYPE),)))
                path = paths[size]
                spots.append(addr - home.addr + size - 4)
            found.objects.setdefault(addr, (size, path))
    spot = np.array(spots, np.int64)
    value = model.read_u32(raw, np.minimum(spot, len(raw) - 4))
    found.targets.append(distinct(value[value > 0] + go.types))
    # a field pair can look like an address; it is none
    spot = np.concatenate([spot, np.array(texts, np.int64)])
    taken = distinct((spot + home.offset) // 8 * 8)
    taken += 0 if home.offset % 8 == home.addr % 8 else home.offset % 8
    # and so can a mask: it is less than eight bytes with zeros behind
    inside = np.array(masks, np.int64) - home.addr + home.offset
    hashes = _itabs(found, types, word_pos, word_target)
    return np.concatenate([taken, inside, hashes])


def _fold_methods(fixed: tuple[tuple[int, int], ...], size: int) -> Pattern:
    """A descriptor's pattern, the methods at its end as repeated fields: types with few methods and
    with many then share one, and a new type brings no new pattern."""
    for group in ((K_TYPE, K_TYPE, K_TEXT, K_TEXT), (K_TYPE, K_TYPE)):
        count, stride = len(group), 4 * len(group)
        first, end = len(fixed), size
        while first >= count:
            begin = fixed[first - count][0]
            want = tuple((begin + 4 * k, kind) for k, kind in enumerate(group))
            if begin + stride != end or fixed[first - count : first] != want:
                break
            first, end = first - count, begin
        if first < len(fixed):
            repeated = tuple((4 * k, kind) for k, kind in enumerate(group))
            return Pattern(fixed[:first], end, stride, repeated, key=TYPE_HASH)
    return Pattern(fixed=fixed, key=TYPE_HASH)


def _itabs(
    found: Discovery, types: list[TypeObject], word_pos: Int64s, word_target: Int64s
) -> Int64s:
    """Itabs: a pointer to an interface, one to a type, and that type's hash. An itab is what it
    names; the functions follow. Returns the positions of the hashes.
    Source: src/internal/abi/iface.go, go1.20 to go1.27."""
    data, elf = found.go.elf.data, found.go.elf
    interfaces = {t.addr: t.methods for t in types if t.kind == INTERFACE}
    hashes = {t.addr: t.hash for t in types}
    pattern = found.pattern(Pattern(key=ITAB_KEY))
    found.pointers.add(pattern)
    at = dict(zip(word_pos.tolist(), word_target.tolist(), strict=True))
    homes = sorted((s.offset, s.addr) for s in elf.sections if s.in_file and s.addr)
    spots = []
    named = is_in(word_target, np.fromiter(interfaces, np.int64, len(interfaces)))
    for pos in np.sort(word_pos[named]).tolist():
        want = hashes.get(at.get(pos + 8, 0))
        if want is None or int.from_bytes(data[pos + 16 : pos + 20], "little") != want:
            continue
        offset, addr = homes[bisect_right(homes, (pos, 1 << 62)) - 1]
        size = ITAB_FUNCTIONS + 8 * interfaces[at[pos]]
        found.objects[pos - offset + addr] = (size, pattern)
        spots.append(pos + 16)
    return np.array(spots, np.int64)
