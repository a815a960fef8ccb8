"""`layerkit init`: a new function in a folder, from a template.

The word FUNCTION in a template becomes the function's name, RUNTIME_VERSION the version of the Go
module that travels with this layerkit. Nothing that exists is overwritten, and nothing is left
behind on failure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerkit.edges.data import find_data, read_data
from layerkit.edges.disk import Disk
from layerkit.edges.goruntime import read_runtime, require_runtime
from layerkit.errors import UsageError

__all__ = ["DEFAULT_TEMPLATE", "TEMPLATES", "InitResult", "add_runtime", "init"]

TEMPLATES: Final = ("http", "cron", "worker")
DEFAULT_TEMPLATE: Final = "http"
_NAME: Final = b"FUNCTION"
_RUNTIME_VERSION: Final = b"RUNTIME_VERSION"


@dataclass(frozen=True, slots=True)
class InitResult:
    """What was made: the folder, the function's name, the files relative to the folder."""

    folder: str
    name: str
    template: str
    files: tuple[str, ...]


def init(folder: Path, template: str = DEFAULT_TEMPLATE, disk: Disk | None = None) -> InitResult:
    """Make a new function in `folder`, which must be absent or empty."""
    disk = disk or Disk()
    if template not in TEMPLATES:
        raise UsageError(
            f"template {template[:40]!r} is not known", hint=f"use {', '.join(TEMPLATES)}"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="name a new folder")
    name = _function_name(folder)
    files = _read_template(template, name)
    was_there = folder.is_dir()
    try:
        for relative, data in sorted(files.items()):
            disk.make_folder((folder / relative).parent)
            disk.write_atomic(folder / relative, data)
    except BaseException:
        if was_there:
            for relative in files:
                disk.remove(folder / relative)
        elif folder.is_dir():
            disk.remove_tree(folder)
        raise
    return InitResult(str(folder), name, template, tuple(sorted(files)))


def add_runtime(folder: Path, disk: Disk | None = None) -> str:
    """Have a function that exists require the Go module of this layerkit; returns `path@version`.
    Its imports are the author's to write."""
    version = require_runtime(disk or Disk(), folder)
    return f"{read_runtime().path}@{version}"


def _function_name(folder: Path) -> str:
    """A Go module name and repository name from the folder's own name."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")
    return name or "function"


def _read_template(template: str, name: str) -> dict[str, bytes]:
    """The template's files with the function's name, and the sums of what it imports."""
    runtime = read_runtime()
    words = {_NAME: name, _RUNTIME_VERSION: runtime.version}
    files = read_data(find_data("templates").joinpath(template))
    for word, value in words.items():
        files = {path: data.replace(word, value.encode()) for path, data in files.items()}
    return files | {"go.sum": "".join(f"{line}\n" for line in runtime.sums()).encode()}
