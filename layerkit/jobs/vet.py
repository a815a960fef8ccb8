"""`layerkit vet`: passes over a function's sources that find goroutines that leak, contexts that
are dropped, and locks that are held too long.

The passes are Go (`go-vet`, go/analysis), travel with layerkit as sources, and are built once for
each Go release into the cache folder; `go vet` runs them, so it knows the build tags and the
dependencies. docs/vet.md says what each finds.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerkit.edges.data import find_data, read_data
from layerkit.edges.disk import Disk
from layerkit.edges.goruntime import offer_runtime
from layerkit.edges.tools import Go, Tools
from layerkit.errors import NotFoundError, ToolError, UsageError
from layerkit.formats import gotool
from layerkit.formats.govet import Finding, parse_findings

__all__ = ["ANALYZERS", "VetResult", "vet"]

ANALYZERS: Final = ("ctxgo", "ctxblock", "ctxcall", "ctxdrop", "lockcall")
TOOL: Final = "go-vet"


@dataclass(frozen=True, slots=True)
class VetResult:
    """What was found; files are relative to the folder where they lie in it."""

    folder: str
    go: str
    analyzers: tuple[str, ...]
    findings: tuple[Finding, ...]


def vet(
    folder: Path,
    *,
    env: Mapping[str, str],
    cache: Path,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    disk: Disk | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> VetResult:
    """Look at all packages of the module in `folder`.

    Args:
        env: the user's environment; only what says where things are reaches Go.
        cache: folder for the built passes.
        only, skip: names of analyzers; all run where neither is given.
        say: gets a line before something that takes long.
    Raises: NotFoundError, UsageError, ToolMissingError, BuildError, ToolError.
    """
    chosen = _choose(only, skip)
    if not folder.is_dir():
        raise NotFoundError(f"folder {folder} does not exist")
    disk, tools = disk or Disk(), Tools(env)
    go = tools.find_go()
    scratch = disk.make_temp_folder(Path(env.get("TMPDIR") or "/tmp").absolute())
    try:
        tool = _build_tool(tools, go, cache, disk, scratch, say)
        offer = offer_runtime(disk, scratch, folder, go.environment)
        flags = [f"-{name}={str(name in chosen).lower()}" for name in ANALYZERS]
        argv = [str(go.path), "vet", "-json", f"-vettool={tool}", *offer.flags, *flags, "./..."]
        done = tools.run(argv, env={**_environment(go, scratch), **offer.environment}, cwd=folder)
    finally:
        disk.remove_tree(scratch)
    findings, others = parse_findings(done.stdout + b"\n" + done.stderr)
    if done.status != 0:
        raise gotool.explain_failure(others, done.argv, done.status, str(folder))
    root = str(folder.resolve()) + os.sep
    return VetResult(
        str(folder), go.release, chosen, tuple(_relative(one, root) for one in findings)
    )


def _choose(only: Sequence[str], skip: Sequence[str]) -> tuple[str, ...]:
    for name in (*only, *skip):
        if name not in ANALYZERS:
            raise UsageError(f"analyzer {name[:40]!r} is not known", hint=f"use {_all_names()}")
    chosen = tuple(name for name in ANALYZERS if (not only or name in only) and name not in skip)
    if not chosen:
        raise UsageError("no analyzer is left", hint=f"name one of {_all_names()}")
    return chosen


def _all_names() -> str:
    return ", ".join(ANALYZERS)


def _environment(go: Go, scratch: Path) -> dict[str, str]:
    places = {"TMPDIR": str(scratch), "GOTMPDIR": str(scratch)}
    return {**go.environment, **places, "GOFLAGS": "", "CGO_ENABLED": "0"}


def _build_tool(
    tools: Tools, go: Go, cache: Path, disk: Disk, scratch: Path, say: Callable[[str], None]
) -> Path:
    """The built passes, from the cache if they are there."""
    sources = {
        name: data
        for name, data in read_data(find_data(TOOL)).items()
        if not name.endswith("_test.go") and "testdata" not in name.split("/")
    }
    named = hashlib.sha256(go.release.encode())
    for name, data in sorted(sources.items()):
        named.update(f"\n{name} {hashlib.sha256(data).hexdigest()}".encode())
    place = cache / "vet" / f"{TOOL}-{named.hexdigest()[:16]}"
    if place.is_file():
        return place
    say("building the passes, once for this Go")
    for name, data in sources.items():
        disk.make_folder((scratch / TOOL / name).parent)
        disk.write_atomic(scratch / TOOL / name, data)
    built = scratch / "built"
    argv = [str(go.path), "build", "-trimpath", "-buildvcs=false", "-o", str(built), "."]
    environment = _environment(go, scratch) | {"GOWORK": "off"}
    done = tools.run(argv, env=environment, cwd=scratch / TOOL)
    if done.status != 0:
        raise ToolError(
            "the passes of vet cannot be built",
            argv=done.argv,
            status=done.status,
            stderr_tail=done.stderr_text[-2000:].strip(),
            cause=done.stderr_text.strip().rpartition("\n")[2][:300],
            hint="the first time golang.org/x/tools is fetched: check GOPROXY and the network",
        )
    disk.make_folder(place.parent)
    disk.write_atomic(place, built.read_bytes(), mode=0o755)
    return place


def _relative(one: Finding, root: str) -> Finding:
    file = one.file.removeprefix(root)
    return Finding(file, one.line, one.column, one.message, one.analyzer, one.package)
