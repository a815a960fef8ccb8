"""Folders that travel with layerkit: in the wheel (`layerkit/_data`), else in the checkout."""

from __future__ import annotations

import importlib.resources
from importlib.resources.abc import Traversable

from layerkit.errors import NotFoundError

__all__ = ["find_data", "read_data"]


def find_data(name: str) -> Traversable:
    """The folder of that name."""
    package = importlib.resources.files("layerkit")
    for place in (package.joinpath("_data", name), package.joinpath("..", name)):
        if place.is_dir():
            return place
    raise NotFoundError(f"{name} did not travel with this layerkit", hint="install layerkit again")


def read_data(root: Traversable) -> dict[str, bytes]:
    """All files in a folder but hidden ones, by their paths with slashes."""
    files: dict[str, bytes] = {}
    pending = [("", root)]
    while pending:
        prefix, place = pending.pop()
        for child in place.iterdir():
            if child.name.startswith("."):
                continue
            if child.is_dir():
                pending.append((f"{prefix}{child.name}/", child))
            else:
                files[prefix + child.name] = child.read_bytes()
    return files
