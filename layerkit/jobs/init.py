"""`layerkit init`: a new function in a folder, from a template.

Templates travel in the wheel (`layerkit/_data/templates`); in a checkout they lie beside the
package. The word FUNCTION in a template becomes the function's name. Nothing that exists is
overwritten, and nothing is left behind on failure.
"""

from __future__ import annotations

import importlib.resources
import re
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from layerkit.edges.disk import Disk
from layerkit.errors import NotFoundError, UsageError

__all__ = ["DEFAULT_TEMPLATE", "TEMPLATES", "InitResult", "find_data", "init"]

TEMPLATES: Final = ("http", "cron", "worker")
DEFAULT_TEMPLATE: Final = "http"
_PLACEHOLDER: Final = b"FUNCTION"


@dataclass(frozen=True, slots=True)
class InitResult:
    """What was made: the folder, the function's name, the files relative to the folder."""

    folder: str
    name: str
    template: str
    files: tuple[str, ...]


def find_data(name: str) -> Traversable:
    """A folder that travels with layerkit: in the wheel, else in the checkout."""
    package = importlib.resources.files("layerkit")
    for place in (package.joinpath("_data", name), package.joinpath("..", name)):
        if place.is_dir():
            return place
    raise NotFoundError(f"{name} did not travel with this layerkit", hint="install layerkit again")


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
    files = _read_template(find_data("templates").joinpath(template), name)
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


def _function_name(folder: Path) -> str:
    """A Go module name and repository name from the folder's own name."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")
    return name or "function"


def _read_template(root: Traversable, name: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    pending = [("", root)]
    while pending:
        prefix, place = pending.pop()
        for child in place.iterdir():
            if child.is_dir():
                pending.append((f"{prefix}{child.name}/", child))
            elif not child.name.startswith("."):
                data = child.read_bytes()
                files[prefix + child.name] = data.replace(_PLACEHOLDER, name.encode("ascii"))
    return files
