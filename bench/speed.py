"""Time and peak memory of one operation, in a process of its own. Prints one document.

    python bench/speed.py OPERATION ROUNDS OLD NEW [FORM_OLD FORM_NEW NAMED_NEW]

`memory` is the peak over what the process, its libraries loaded, held before it read its files, so
inputs and results count. Times are processor time of a warm process, user and system: the first
round is dropped, and what else runs on the machine counts little.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bsdiff4
import iced_x86  # noqa: F401  encode loads it when first used; code is not what an operation holds
import zstandard

from layerkit.formats import addressfree, delta
from layerkit.formats.elf import parse_elf


def prepare(operation: str, paths: list[Path]) -> Callable[[], Any]:
    """Read what the operation needs, and nothing else; the call is what is timed."""

    def read(index: int) -> bytes:
        return paths[index].read_bytes()

    if operation == "encode":
        hints = addressfree.read_hints(parse_elf(read(4)))
        binary = read(1)
        return lambda: addressfree.encode(binary, hints)
    if operation == "decode":
        form, want = read(3), hashlib.sha256(read(1)).digest()

        def decode() -> None:
            assert hashlib.sha256(addressfree.decode(form)).digest() == want

        return decode
    if operation in ("diff", "patch"):
        old, new = read(2), read(3)
        if operation == "diff":
            return lambda: delta.diff([old], new)
        one = delta.diff([old], new)
        return lambda: delta.patch([old], one)
    new = read(1)
    if operation == "zstd -19 compress":
        return lambda: zstandard.ZstdCompressor(level=19).compress(new)
    if operation == "zstd -19 decompress":
        packed = zstandard.ZstdCompressor(level=19).compress(new)
        return lambda: zstandard.ZstdDecompressor().decompress(packed)
    if operation == "sha256":
        return lambda: hashlib.sha256(new).digest()
    old = read(0)
    if operation.startswith("bsdiff4"):
        if operation.endswith("diff"):
            return lambda: bsdiff4.diff(old, new)
        patch = bsdiff4.diff(old, new)
        return lambda: bsdiff4.patch(old, patch)
    import hdiffpatch

    coder = hdiffpatch.Lzma2Config(9, window=24)
    if operation.endswith("diff"):
        return lambda: hdiffpatch.diff(old, new, compression=coder, validate=False)
    made = hdiffpatch.diff(old, new, compression=coder, validate=False)
    return lambda: hdiffpatch.apply(old, made)


def peak_memory() -> int:
    """The peak of this process, bytes. Not getrusage: its peak survives exec, and so is at least
    that of the process which started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def main(operation: str, rounds: int, paths: list[Path]) -> None:
    before = peak_memory()
    run = prepare(operation, paths)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the preparation
    times = []
    for _ in range(rounds + 1):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    peak = peak_memory()
    kept = [round(t, 5) for t in times[1:]]
    print(json.dumps({"seconds": kept, "first": round(times[0], 4), "memory": peak - before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
