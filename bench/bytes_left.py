"""The work list: which bytes of a delta are left, by region of the binary and by stream.

    python bench/bytes_left.py OLD NEW     (names of workloads, or unstripped Go binaries)

`alone` is the delta of that part alone, without its header and digests; the parts do not add up to
the whole, since each is compressed by itself. `inserted`, `differing` and `copies` count what the
real delta says about the part; so what resists is in the rows where they are large.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import numpy as np
import ours
from build import WORKLOADS, Built, build_workload
from report import grid, number

from layerkit.formats import delta
from layerkit.formats.addressfree import _parse
from layerkit.formats.cursor import Reader
from layerkit.formats.elf import parse_elf
from layerkit.formats.golang import parse_go_tables

STREAMS = ("gaps", "sizes", "seeks", "places", "values", "inserts")
Part = tuple[str, int, int]  # name, offset in the form, size


def load(name: str) -> Built:
    return build_workload(name) if (WORKLOADS / name).is_dir() else Built(name, Path(name))


def parts_of(built: Built, form: bytes) -> list[Part]:
    """The form in order: header, labels, then the body by section and subtable of .gopclntab."""
    elf = parse_elf(built.binary)
    go = parse_go_tables(elf)
    _, labels, body = _parse(form)
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
    matches = delta._find_matches(old, new)
    covered = np.zeros(len(new), np.uint8)  # 0 inserted, 1 copied, 2 copied and differing
    a, b = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    begins = []
    for start, source, size in matches:
        begins.append(start)
        covered[start : start + size] = 1 + (
            a[source : source + size] != b[start : start + size]
        ).astype(np.uint8)
    first = np.array(begins, np.int64)
    rows = []
    for name, at, size in new_parts:
        one = new[at : at + size]
        held = before.get(name, b"")
        made = delta.diff([held], one)
        header = len(made) - payload_of(made, [held])[1]
        counts = np.bincount(covered[at : at + size], minlength=3).tolist()
        copies = int(((first >= at) & (first < at + size)).sum())
        alone = 0 if held == one else len(made) - header
        rows.append((alone, [name, number(size), counts[0], counts[2], copies]))
    rows.sort(key=lambda row: (-row[0], str(row[1][0])))
    lines = [[*map(str, row), number(alone)] for alone, row in rows]
    return grid(["part", "size", "inserted", "differing", "copies", "alone"], lines)


def payload_of(made: bytes, olds: list[bytes]) -> tuple[bytes, int]:
    """The commands of a delta, and how many bytes they take in it."""
    reader = Reader(made, "delta")
    pack, *_, payload_size = delta._read_header(reader)
    packed = bytes(reader.take(reader.left))
    return delta._unpack(pack, packed, b"".join(olds), payload_size), len(packed)


def by_stream(made: bytes, old: bytes) -> str:
    payload, packed_size = payload_of(made, [old])
    reader = Reader(payload, "commands")
    rows = []
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 1, "pb": 0}]
    index = 0
    while reader.left:
        data = bytes(reader.sized(reader.left, "stream"))
        name = STREAMS[index] if index < len(STREAMS) else f"stream {index}"
        alone = len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))
        rows.append([name, number(len(data)), number(alone)])
        index += 1
    rows.append(["header and digests", number(len(made) - packed_size), ""])
    rows.append(["all", number(len(payload)), number(len(made))])
    return grid(["stream", "bytes", "LZMA alone"], rows)


def main(old_name: str, new_name: str) -> None:
    old, new = load(old_name), load(new_name)
    old_form, new_form = ours.form_of(old), ours.form_of(new)
    made = ours.delta_of([old_form], new_form)
    print(f"{old_name} -> {new_name}: {number(len(made))} bytes of delta\n")
    print(by_stream(made, old_form) + "\n")
    print(by_part(old_form, new_form, parts_of(old, old_form), parts_of(new, new_form)))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2])
