"""Power cuts: what a disk may hold after one, from a trace of all that a process wrote.

`record` runs a script under strace. `Replay` applies its writes, syncs, renames and removals one
after the other, and at any point writes out what may be left: what was not synced is there, partly
there or gone. It knows SQLite's files as well as ours, for it looks from below. Shared memory is
left out: it is made anew.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = "openat,write,pwrite64,fsync,fdatasync,rename,unlink,unlinkat,ftruncate,mkdir"
_LINE = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+=\s+(\d+)")
_FD = re.compile(r"^(\d+)<([^>]*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True)
class Step:
    """One call: its name, the path, and what else it needs."""

    call: str
    path: str
    data: bytes = b""
    offset: int = -1  # of a write; -1 for one at the end
    other: str = ""


def record(script: Path, argv: list[str], trace: Path) -> None:
    options = ["-f", "-qq", "-xx", "-y", "-s", "4000000", "-e", f"trace={CALLS}", "-o", str(trace)]
    command = ["strace", *options, sys.executable, str(script), *argv]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def read_trace(trace: Path, root: str) -> Iterator[Step]:
    """Steps below `root`, and writes to stdout as steps of path ""."""
    for line in trace.read_text().splitlines():
        found = _LINE.match(line)
        if not found:
            continue
        call, arguments = found[1], found[2]
        fd = _FD.match(arguments)
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(arguments)]
        if fd and call != "openat" and not call.endswith("at"):
            path = bytes.fromhex(fd[2].replace("\\x", "")).decode() if "\\x" in fd[2] else fd[2]
            if fd[1] == "1" and call == "write":
                yield Step(call, "", texts[0])
            elif path.startswith(root):
                tail = arguments.rsplit(", ", 1)[-1]
                if call == "pwrite64":
                    yield Step(call, path, texts[0], int(tail))
                elif call == "ftruncate":
                    yield Step(call, path, offset=int(tail))
                elif call == "write":
                    yield Step(call, path, texts[0])
                else:
                    yield Step("fsync", path)
        elif texts and texts[0].decode("utf-8", "replace").startswith(root):
            names = [text.decode() for text in texts[:2]]
            if call == "openat" and "O_CREAT" in arguments:
                yield Step("create", names[0])
            elif call in ("unlink", "unlinkat"):
                yield Step("unlink", names[0])
            elif call == "rename":
                yield Step("rename", names[0], other=names[1])
            elif call == "mkdir":
                yield Step("mkdir", names[0])


@dataclass
class _File:
    durable: bytes = b""
    pending: list[Step] = field(default_factory=list)

    def content(self, chosen: list[Step]) -> bytes:
        data = bytearray(self.durable)
        for step in chosen:
            if step.call == "ftruncate":
                del data[step.offset :]
                data.extend(bytes(step.offset - len(data)))
                continue
            at = len(data) if step.offset < 0 else step.offset
            data.extend(bytes(max(at - len(data), 0)))
            data[at : at + len(step.data)] = step.data
        return bytes(data)


class Replay:
    """A disk: names and files as the process sees them, and as they are durable."""

    def __init__(self, start: Path) -> None:
        self.now: dict[str, _File] = {}
        self.kept: dict[str, _File] = {}
        for path in start.rglob("*"):
            if path.is_file():
                self.now[str(path)] = _File(path.read_bytes())
        self.kept = dict(self.now)

    def apply(self, step: Step) -> None:
        if step.path.endswith("-shm") or not step.path:
            return
        if step.call == "create":
            self.now.setdefault(step.path, _File())
        elif step.call == "unlink":
            self.now.pop(step.path, None)
        elif step.call == "rename":
            self.now[step.other] = self.now.pop(step.path)
        elif step.call == "fsync" and step.path in self.now:
            file = self.now[step.path]
            file.durable, file.pending = file.content(file.pending), []
        elif step.call == "fsync":  # a folder: its names are durable
            inside = {name for name in {*self.now, *self.kept} if _folder(name) == step.path}
            for name in inside:
                if name in self.now:
                    self.kept[name] = self.now[name]
                else:
                    self.kept.pop(name, None)
        elif step.path in self.now:
            self.now[step.path].pending.append(step)

    def write_out(self, root: str, target: Path, mode: str, random_: random.Random) -> None:
        """What a power cut leaves: `all` that was written, the last write torn; nothing but what is
        `synced`; names that are there with `empty` contents; `some` of the rest."""
        names = self.kept if mode == "synced" else dict(self.now)
        if mode == "some":
            names = {
                **self.kept,
                **{name: f for name, f in self.now.items() if random_.random() < 0.5},
            }
        for name, file in names.items():
            chosen = file.pending if mode == "all" else []
            if mode == "some":
                chosen = [step for step in file.pending if random_.random() < 0.5]
            if chosen and chosen[-1].data:
                last = chosen[-1]
                torn = last.data[: len(last.data) // 2]
                chosen = [*chosen[:-1], Step(last.call, last.path, torn, last.offset)]
            path = target / Path(name).relative_to(root)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content(chosen))


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
