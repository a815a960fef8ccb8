"""The work list: which bytes of a delta are left, by region of the binary and by part of the delta.

    python bench/bytes_left.py OLD NEW     (names of workloads, or unstripped Go binaries)

`alone` is the delta of that part alone, without its header and digests; the parts do not add up to
the whole, since each is compressed by itself. `gaps` are the bytes that no cover brings, `unlike`
those of them that lie in no longer equal run either; so
what resists is in the rows where these are large.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import ours
from build import WORKLOADS, Built, build_workload
from report import grid, number

from layerkit.formats import delta
from layerkit.formats.addressfree.wire import parse_form
from layerkit.formats.cursor import Reader
from layerkit.formats.delta import primed
from layerkit.formats.delta.covers import choose_covers, find_runs, gaps_of, read_covers
from layerkit.formats.delta.far import read_far
from layerkit.formats.elf import parse_elf
from layerkit.formats.golang import parse_go_tables

Part = tuple[str, int, int]  # name, offset in the form, size


def load(name: str) -> Built:
    return build_workload(name) if (WORKLOADS / name).is_dir() else Built(name, Path(name))


def parts_of(built: Built, form: bytes) -> list[Part]:
    """The form in order: header, labels, then the body by section and subtable of .gopclntab."""
    elf = parse_elf(built.binary)
    go = parse_go_tables(elf)
    _, labels, body = parse_form(form)
    start = len(form) - len(body)
    labels_at = form.index(bytes(labels)) if len(labels) else start
    cuts = [("header", 0), ("labels", labels_at), ("ELF header", start)]
    for section in elf.sections:
        if section.in_file and section.size and section is not go.pclntab:
            cuts.append((section.name, start + section.offset))
    base = start + go.pclntab.offset
    tables = {
        "pcHeader": 0,
        "function names": go.name_off,
        "compile units": go.cu_off,
        "file names": go.file_off,
        "pctab": go.pctab_off,
        "functab": go.func_off,
    }
    cuts += [(f"pclntab {name}", base + offset) for name, offset in tables.items()]
    records = base + int(go.records.min())
    cuts.append(("pclntab functions", records))
    cuts.sort(key=lambda cut: cut[1])
    ends = [at for _, at in cuts[1:]] + [len(form)]
    return [(name, at, end - at) for (name, at), end in zip(cuts, ends, strict=True) if end > at]


def by_part(old: bytes, new: bytes, old_parts: list[Part], new_parts: list[Part]) -> str:
    before = {name: old[at : at + size] for name, at, size in old_parts}
    runs = find_runs(old, new)
    covers = choose_covers(runs, len(old), len(new))
    in_gap, unlike = np.zeros(len(new), bool), np.ones(len(new), bool)
    for gap in gaps_of(covers, len(old), len(new)):
        in_gap[gap.start : gap.start + gap.size] = True
    for run in runs:
        unlike[run.start : run.start + run.size] = False
    first = np.array([cover.start for cover in covers], np.int64)
    rows = []
    for name, at, size in new_parts:
        one = new[at : at + size]
        held = before.get(name, b"")
        made = delta.diff([held], one)
        alone = 0 if held == one else len(made) - len(delta._serialize_header([held], one))
        copies = int(((first >= at) & (first < at + size)).sum())
        gaps = int(in_gap[at : at + size].sum())
        rest = int((in_gap & unlike)[at : at + size].sum())
        rows.append((alone, [name, number(size), number(gaps), number(rest), copies]))
    rows.sort(key=lambda row: (-row[0], str(row[1][0])))
    lines = [[*map(str, row), number(alone)] for alone, row in rows]
    return grid(["part", "size", "gaps", "unlike", "covers", "alone"], lines)


def by_piece(made: bytes, old: bytes, new: bytes) -> str:
    """Header, covers, and the far runs and the packed bytes of each window."""
    reader = Reader(made, "delta")
    delta._read_header(reader)
    rows = [["header and digests", number(reader.offset), ""]]
    start = reader.offset
    covers = read_covers(reader, len(old), len(new))
    rows.append(["covers", number(reader.offset - start), f"{len(covers)} copies"])
    for window in delta._windows(gaps_of(covers, len(old), len(new))):
        before = reader.left
        far = read_far(reader, len(old), delta.FAR_SIZE)
        told = f"{number(sum(size for _, size in far))} bytes of old"
        rows.append(["far runs", number(before - reader.left), told])
        before, near = reader.left, delta._near(old, window)
        code = reader.varint(1 << 32, "filler")
        size = sum(gap.size for gap in window)
        packed = bytes(reader.take(reader.left))
        if code & 1:
            packed = primed.expand(packed, code >> 1, size)
        _, rest = primed.decompress(delta._join(old, far) + near, code >> 1, packed, size)
        told = f"{number(size)} bytes of gaps, {number(len(near))} of old around them"
        rows.append(["window", number(before - len(rest)), told])
        reader = Reader(rest, "delta")
    rows.append(["all", number(len(made)), ""])
    return grid(["piece", "bytes", "of what"], rows)


def main(old_name: str, new_name: str) -> None:
    old, new = load(old_name), load(new_name)
    old_form, new_form = ours.form_of(old), ours.form_of(new)
    made = ours.delta_of([old_form], new_form)
    print(f"{old_name} -> {new_name}: {number(len(made))} bytes of delta\n")
    print(by_piece(made, old_form, new_form) + "\n")
    print(by_part(old_form, new_form, parts_of(old, old_form), parts_of(new, new_form)))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2])
