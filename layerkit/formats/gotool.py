"""What the go command says, as values: package lists, the cgo comparison, failures as errors.

Pure; edges/tools runs it. The messages are matched as Go 1.24 to 1.27 write them; one that is not
recognised still comes through with its own text. Spec: src/cmd/go/internal/load/pkg.go, go1.26.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from layerkit.errors import (
    BuildError,
    CgoError,
    FormatError,
    LayerkitError,
    StoreFullError,
    ToolMissingError,
)

__all__ = [
    "LIST_FIELDS",
    "CgoReport",
    "Package",
    "binary_name",
    "compare_cgo",
    "explain_failure",
    "has_cgo",
    "needs_cgo",
    "parse_packages",
]

LIST_FIELDS: Final = "ImportPath,Name,Standard,DepOnly,GoFiles,CgoFiles"  # of `go list -json=`
MAX_LIST_SIZE: Final = 256 << 20  # bytes of `go list` output
MAX_PROBLEMS: Final = 5  # compile errors told; the rest is counted
STDERR_TAIL: Final = 4000  # characters

_PLACE: Final = re.compile(
    r"^(?:vet: )?(?P<place>[^\s:][^:\n]*\.(?:go|s|mod|sum|work):\d+(?::\d+)?): (?P<text>.+)$", re.M
)
_TOO_OLD: Final = re.compile(r"requires go >= (?P<want>[\w.]+)(?: \(running (?P<got>go[\w.]+))?")
_FULL: Final = ("no space left on device", "disk quota exceeded", "file too large")


@dataclass(frozen=True, slots=True)
class Package:
    """One package of `go list`."""

    path: str
    name: str
    standard: bool
    dep_only: bool
    go_file_count: int
    cgo_files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CgoReport:
    """Packages outside the standard library with cgo files: lost ones, and ones with a fallback."""

    needed: tuple[Package, ...]
    fallback: tuple[Package, ...]


def parse_packages(raw: bytes) -> tuple[Package, ...]:
    """Parse the stream of JSON objects that `go list -json` prints."""
    if len(raw) > MAX_LIST_SIZE:
        raise FormatError(f"go list: over {MAX_LIST_SIZE} bytes")
    decoder = json.JSONDecoder()
    packages = []
    try:
        text = raw.decode("utf-8").strip()
        at = 0
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            packages.append(_package(value))
            while text[at : at + 1].isspace():
                at += 1
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise FormatError("go list: output is not a stream of packages", cause=str(exc)) from exc
    return tuple(packages)


def _package(value: Mapping[str, object]) -> Package:
    go_files, cgo_files = (value.get(key, []) for key in ("GoFiles", "CgoFiles"))
    if not isinstance(go_files, list) or not isinstance(cgo_files, list):
        raise TypeError("files are not a list")
    return Package(
        str(value["ImportPath"]),
        str(value.get("Name", "")),
        bool(value.get("Standard", False)),
        bool(value.get("DepOnly", False)),
        len(go_files),
        tuple(sorted(str(name) for name in cgo_files)),
    )


def has_cgo(package: Package) -> bool:
    """Is there anything that a build without cgo leaves out? The standard library has fallbacks."""
    return bool(package.cgo_files) and not package.standard


def compare_cgo(with_cgo: Iterable[Package], without: Iterable[Package]) -> CgoReport:
    """What a build without cgo leaves out: with CGO_ENABLED=0 Go ignores cgo files silently.

    A package that is in the list without cgo and has no files there is needed and lost. One that
    has files, or that nobody imports any more, has a fallback.
    """
    left = {package.path: package for package in without}
    needed: list[Package] = []
    fallback: list[Package] = []
    for package in with_cgo:
        if not has_cgo(package):
            continue
        plain = left.get(package.path)
        lost = plain is not None and plain.go_file_count == 0
        (needed if lost else fallback).append(package)
    return CgoReport(
        tuple(sorted(needed, key=lambda package: package.path)),
        tuple(sorted(fallback, key=lambda package: package.path)),
    )


def needs_cgo(packages: Iterable[Package], *, strict: bool) -> CgoError:
    """The error for packages that need cgo, or under --strict-cgo that only have a fallback."""
    found = list(packages)
    names = ", ".join(package.path for package in found)
    files = ", ".join(f"{p.path}/{name}" for p in found for name in p.cgo_files[:2])
    if strict:
        return CgoError(
            f"package {names} has cgo files, which a static build leaves out",
            cause=f'import "C" in {files}',
            hint="leave out --strict-cgo to build with the fallback",
        )
    return CgoError(
        f"package {names} needs cgo and has no files without it",
        cause=f'import "C" in {files}',
        hint="use a pure Go package instead; layerkit builds static binaries only",
    )


def binary_name(packages: Iterable[Package], folder: str) -> str:
    """The binary's name, from the import path of the main package; BuildError if it is not main."""
    mains = [package for package in packages if not package.dep_only]
    if len(mains) != 1 or mains[0].name not in ("main", ""):
        name = mains[0].name if mains else ""
        raise BuildError(
            f"no main package in {folder}",
            cause=f"package is {name}" if name else "no Go files",
            hint="name the folder of the main package, or set build.package in layerkit.toml",
        )
    parts = [part for part in mains[0].path.split("/") if part]
    if len(parts) > 1 and re.fullmatch(r"v\d+", parts[-1]):
        parts.pop()
    return re.sub(r"[^A-Za-z0-9._-]", "-", parts[-1]).lstrip(".-") or "main"


def explain_failure(stderr: str, argv: tuple[str, ...], status: int, folder: str) -> LayerkitError:
    """The error for a go command that ended with `status`."""
    tail = stderr[-STDERR_TAIL:]
    if any(text in stderr.lower() for text in _FULL):
        return StoreFullError(
            f"no space left while building {folder}",
            cause=_last_line(stderr),
            hint="free some space, or point TMPDIR and GOCACHE elsewhere",
        )
    too_old = _TOO_OLD.search(stderr)
    if too_old:
        return ToolMissingError(
            f"go is too old: {folder} wants go {too_old['want']}",
            argv=argv,
            status=status,
            stderr_tail=tail,
            cause=f"got {too_old['got'] or 'an older one'}, want {too_old['want']}",
            hint=f'install it, or set go = "{too_old["want"]}" under [build] in layerkit.toml',
        )
    message, cause, hint = _describe_failure(stderr, status, folder)
    return BuildError(message, argv=argv, status=status, stderr_tail=tail, cause=cause, hint=hint)


def _describe_failure(stderr: str, status: int, folder: str) -> tuple[str, str, str]:
    if "go.mod file not found" in stderr or "cannot find main module" in stderr:
        return (
            f"no go.mod in {folder} or above it",
            "",
            "run 'go mod init NAME' there, or 'layerkit init DIR' for a new function",
        )
    problems = [f"{hit['place']}: {hit['text']}" for hit in _PLACE.finditer(stderr)]
    if problems:
        hint = "run 'go mod tidy'" if "go mod tidy" in stderr or "go get " in stderr else ""
        more = problems[1:MAX_PROBLEMS]
        if len(problems) > MAX_PROBLEMS:
            more.append(f"and {len(problems) - MAX_PROBLEMS} more")
        return problems[0], "; ".join(more) or f"go build in {folder}", hint
    if "no Go files in" in stderr or "build constraints exclude all Go files" in stderr:
        return f"no main package in {folder}", _last_line(stderr), ""
    if status < 0:
        return f"go was stopped by signal {-status}", _last_line(stderr), ""
    return _last_line(stderr) or f"go ended with status {status}", f"go build in {folder}", ""


def _last_line(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines()]
    told = [line for line in lines if line and not line.startswith("#")]
    return told[-1].removeprefix("go: ")[:500] if told else ""
