"""Run the kept inputs of targets with a limit on memory: `python bounded.py TARGET...`.

The limit is what the process has after the seeds, and ROOM: the inputs are a few kilobytes, and the
most that a format asks for, whatever its input, is a zstd window of 128 MiB.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOM = 256 << 20  # bytes of address space


def limit_memory(room: int = ROOM) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit, hard = pages * resource.getpagesize() + room, resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:  # a child of a process that is limited already
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def main(names: list[str]) -> None:
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
    import targets

    chosen = [(targets.TARGETS[name].run, name) for name in names]
    for run, name in chosen:
        for data in targets.TARGETS[name].seeds():
            run(data)  # loads what is loaded on first use
    limit_memory()
    for run, name in chosen:
        for data in targets.corpus_of(name):
            run(data)


if __name__ == "__main__":
    main(sys.argv[1:])
