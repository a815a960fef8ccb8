"""The Go module that functions import (`go-runtime`), offered to go as a module proxy in a folder.

go asks the proxies of GOPROXY in turn, so ours stands before the user's and nothing else changes:
no replace in go.mod, no network. A function whose go.mod wants another version of the module than
this layerkit has gets ours, by a go.mod of its own beside the proxy: so an upgrade of layerkit
breaks no build. Where dependencies are vendored, or in a workspace, go knows no such go.mod: there
what is written holds.
Spec: https://go.dev/ref/mod#goproxy-protocol, #build-commands (-modfile).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerkit import __version__
from layerkit.edges.data import find_data, read_data
from layerkit.edges.disk import Disk, map_os_error
from layerkit.errors import NotFoundError
from layerkit.formats.gomodule import (
    GoModule,
    find_requirement,
    replace_sums,
    set_requirement,
)

__all__ = ["Offer", "offer_runtime", "read_runtime", "require_runtime", "required_texts"]

GO_PROXY: Final = "https://proxy.golang.org,direct"  # go's own default
MAX_FILE_SIZE: Final = 16 << 20  # bytes of a go.mod or go.sum


@dataclass(frozen=True, slots=True)
class Offer:
    """What go needs to find the module: variables of its environment, flags of its commands; and
    the version that go.mod asks for in vain, "" for none."""

    environment: Mapping[str, str]
    flags: tuple[str, ...] = ()
    asked: str = ""


@functools.cache
def read_runtime() -> GoModule:
    """The module that travelled with this layerkit, without its tests."""
    files = read_data(find_data("go-runtime"))
    kept = {
        name: data
        for name, data in files.items()
        if not name.endswith("_test.go") and "testdata" not in name.split("/")
    }
    return GoModule(__version__, kept)


def offer_runtime(disk: Disk, scratch: Path, folder: Path, environment: Mapping[str, str]) -> Offer:
    """Offer the module to go commands that run in `folder` with `environment`; the proxy is made
    in the folder `scratch`. Nothing is offered to a function that does not require it."""
    root = next((at for at in (folder.absolute(), *folder.absolute().parents) if _has(at)), None)
    if root is None:
        return Offer({})
    runtime, go_mod = read_runtime(), _read(root / "go.mod")
    asked = find_requirement(go_mod, runtime.path)
    if asked is None:
        return Offer({})
    proxy = scratch / "goproxy"
    for name, data in runtime.proxy_files().items():
        disk.make_folder((proxy / name).parent)
        disk.write_atomic(proxy / name, data)
    offered = {"GOPROXY": f"{proxy.as_uri()},{environment.get('GOPROXY') or GO_PROXY}"}
    if asked == runtime.version or _is_fixed(root):
        return Offer(offered)
    for path, text in required_texts(root).items():
        disk.write_atomic(scratch / path.name, text.encode())
    return Offer(offered, (f"-modfile={scratch / 'go.mod'}",), asked)


def require_runtime(disk: Disk, folder: Path) -> str:
    """Have the module of this layerkit in go.mod and go.sum of the function in `folder`; returns
    the version."""
    if not (folder / "go.mod").is_file():
        raise NotFoundError(
            f"no go.mod in {folder}", hint="run 'layerkit init DIR' or 'go mod init'"
        )
    for path, text in required_texts(folder).items():
        if text != _read(path):
            disk.write_atomic(path, text.encode())
    return read_runtime().version


def required_texts(folder: Path) -> dict[Path, str]:
    """The go.sum and go.mod of `folder` with the module in them, in the order to write them."""
    runtime = read_runtime()
    sums = replace_sums(_read(folder / "go.sum"), runtime.path, runtime.sums())
    go_mod = set_requirement(_read(folder / "go.mod"), runtime.path, runtime.version)
    return {folder / "go.sum": sums, folder / "go.mod": go_mod}


def _has(folder: Path) -> bool:
    return (folder / "go.mod").is_file()


def _is_fixed(root: Path) -> bool:
    """Are the dependencies vendored, or is there a workspace?"""
    is_vendored = (root / "vendor" / "modules.txt").is_file()
    return is_vendored or any((at / "go.work").is_file() for at in (root, *root.parents))


def _read(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_SIZE).decode("utf-8", "replace")
    except OSError as exc:
        raise map_os_error(exc, "read", path) from exc
