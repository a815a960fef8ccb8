"""What a process keeps of memory that threads gave back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

KEPT = """
import sys, threading
from layerkit.edges.heap import bound_heap
if sys.argv[1] == "bound":
    bound_heap()

def work():
    for size in (8 << 20, 4 << 20, 2 << 20) * 3:
        several = [bytearray(size) for _ in range(3)]
        small.append(bytearray(3000))
        for one in several:
            one[::4096] = b"x" * len(one[::4096])

small = []
def kept():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = kept()
for _ in range(6):
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(kept() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_threads_gave_back_goes_to_the_system() -> None:
    kept = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", KEPT, how], capture_output=True, check=True
            ).stdout
        )
        for how in ("bound", "free")
    }
    assert kept["bound"] < 6 << 20
    assert kept["bound"] < kept["free"] / 4
