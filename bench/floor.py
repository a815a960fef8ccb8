"""The lever: functions that differ only by an unstable id.

A function of the new binary whose form no function of the old one has did really change when its
code did, fields of references masked, or when something that it names is another thing: a function
of another name, an object of another symbol or other content. What is left differs by an id alone,
and that is the encoder's fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from build import Built

from layerkit.formats.addressfree import model, wire
from layerkit.formats.elf import parse_elf
from layerkit.formats.golang import GoTables, parse_go_tables
from layerkit.formats.sites import AMD64, disassemble, find_candidates, read_targets

__all__ = ["floor"]

NUMBERED = re.compile(rb"\.\.[A-Za-z]+[._]\d+$")  # names that count through a package are none


@dataclass(frozen=True)
class Function:
    """Its name, its bytes in the form, its code with the fields of its references masked, and the
    addresses that they point to."""

    name: bytes
    form: bytes
    code: bytes
    targets: tuple[int, ...]


class Side:
    """One binary: its functions, and what stands at an address."""

    def __init__(self, built: Built, form: bytes) -> None:
        self.go = parse_go_tables(parse_elf(built.binary))
        names = _names(self.go)
        self.entry = dict(zip(self.go.entries[:-1].tolist(), names, strict=True))
        self.symbols = {
            s.addr: s.name
            for s in parse_elf(built.named).symbols()
            if not NUMBERED.search(s.name) and not s.name.endswith(b"*")
        }
        _, labels, body = wire.parse_form(form)
        self.labels, _ = wire.parse_labels(labels, len(body))
        self.masked = np.frombuffer(body, np.uint8).copy()
        fields = model.expand_fields(self.labels)
        model.clear_fields(self.masked, fields.pos)
        words = model.find_tagged_words(self.labels, np.frombuffer(body, np.uint8))
        model.clear(self.masked, words, 8)
        self.offsets = self.labels.offsets()
        self.sizes = model.object_sizes(self.labels, np.arange(self.labels.count))
        self.functions = self._functions(names, body)

    def thing(self, addr: int) -> tuple[str, bytes]:
        """What stands at an address: a function's name, else a symbol, else the content."""
        if addr in self.entry:
            return "function", self.entry[addr]
        if addr in self.symbols:
            return "symbol", self.symbols[addr]
        label = int(np.searchsorted(self.labels.start, addr, side="right")) - 1
        at, size = int(self.offsets[label]), int(self.sizes[label])
        if label < 0 or at < 0:
            return "zeros", b""
        return "content", self.masked[at : at + size].tobytes().rstrip(b"\0")

    def _functions(self, names: list[bytes], body: memoryview) -> list[Function]:
        go = self.go
        text = go.elf.section(".text")
        assert text is not None
        raw = go.elf.bytes_of(text)
        sites = find_candidates(raw, AMD64)
        sites = sites.select(np.isin(sites.pos, disassemble(raw, text.addr)))
        target = read_targets(np.frombuffer(raw, np.uint8), 0, sites, text.addr)
        inside = np.searchsorted(go.entries, sites.pos + text.addr, side="right")
        far = np.searchsorted(go.entries, target, side="right") != inside
        places, targets = sites.pos[far], target[far].tolist()
        code = np.frombuffer(raw, np.uint8).copy()
        model.clear(code, places, 4)
        bounds = (go.entries - text.addr).tolist()
        cuts = np.searchsorted(places, bounds).tolist()
        form = body[text.offset : text.offset + text.size]
        return [
            Function(
                name, bytes(form[low:high]), code[low:high].tobytes(), tuple(targets[first:last])
            )
            for name, low, high, first, last in zip(
                names, bounds, bounds[1:], cuts, cuts[1:], strict=False
            )
        ]


def _names(go: GoTables) -> list[bytes]:
    """Function names: the second word of each _func record. src/runtime/runtime2.go, go1.26."""
    table = go.pcln
    names = []
    for at in go.records.tolist():
        start = go.name_off + int.from_bytes(table[at + 4 : at + 8], "little")
        names.append(table[start : table.index(b"\0", start)])
    return names


def floor(old: tuple[Built, bytes], new: tuple[Built, bytes]) -> dict[str, int]:
    """Functions of `new` (binary and form); those whose form no function of `old` has; those of
    them with the code of the old function of the same name that name another thing
    (`other_target`), and those that differ by an id alone (`by_id`)."""
    before, after = Side(*old), Side(*new)
    forms = {f.form for f in before.functions}
    same = {(f.name, f.code): f for f in before.functions}
    differ = [f for f in after.functions if f.form not in forms]
    other = by_id = 0
    for function in differ:
        twin = same.get((function.name, function.code))
        if twin is None:
            continue
        pairs = zip(twin.targets, function.targets, strict=True)
        if all(before.thing(a) == after.thing(b) for a, b in pairs):
            by_id += 1
        else:
            other += 1
    return {
        "functions": len(after.functions),
        "differ": len(differ),
        "other_target": other,
        "by_id": by_id,
    }
