"""What an image itself says of its runtimes and dependencies, beyond the names of folders. Pure.

Runtimes, which are base wherever they lie: a JDK (`release`), Go (`VERSION`), Node
(`node_version.h`), Python (`os.py` of its library). Dependencies: what a Python package's RECORD
lists, so also the scripts that it puts into `bin`; virtual environments and conda's; composer's
`vendor`. A Python package that was installed from a folder (`pip install .`) is the image's code.
Damaged files say nothing: where a path goes costs bytes, never correctness.

Sources: PEP 376 and 427 (RECORD), PEP 610 (direct_url.json), PEP 405 (pyvenv.cfg), JEP 223
(release); golang.org/x/build `VERSION`; nodejs/node `src/node_version.h`.
"""

from __future__ import annotations

import csv
import json
import posixpath
import re
from dataclasses import dataclass, field
from typing import Final

from layerkit.formats.layer import BASE, CODE, DEPS
from layerkit.formats.tar import FILE
from layerkit.formats.tree import Node, Tree, parents

__all__ = ["Claims", "find_claims"]

MAX_FILE_SIZE: Final = 8 << 20  # bytes of a file that is read for what it says
_PYTHON_ROOT: Final = re.compile(r"(?P<root>.+)/lib/python3\.\d+t?/os\.py")
_RECORD: Final = re.compile(r"(?P<packages>.+)/(?P<info>[^/]+\.dist-info)/RECORD")
_NODE_HEADER: Final = "/include/node/node_version.h"
_COMPOSER: Final = "/composer/installed.json"
_CONDA: Final = "/conda-meta/history"


@dataclass(slots=True)
class Claims:
    """Roles of paths, and of folders with all below them."""

    paths: dict[str, str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)

    def of_folder(self, path: str) -> str | None:
        """The role of the nearest folder above `path`, or of itself, that something claims."""
        for folder in (path, *reversed(parents(path))):
            role = self.folders.get(folder)
            if role is not None:
                return role
        return None


def find_claims(tree: Tree) -> Claims:
    """What the files of the tree say."""
    claims = Claims()
    for path, node in tree.nodes.items():
        if node.kind != FILE or len(node.data) > MAX_FILE_SIZE or "/" not in path:
            continue
        found = _RECORD.fullmatch(path)
        if found:
            _claim_package(tree, claims, found["packages"], found["info"], node)
            continue
        root, role = _folder_of(tree, path, node)
        if root:
            claims.folders[root] = role
    return claims


def _folder_of(tree: Tree, path: str, node: Node) -> tuple[str, str]:
    """The folder that this file is the mark of, and its role; "" if it is none."""
    parent, _, name = path.rpartition("/")
    if name == "release" and b"JAVA_VERSION=" in bytes(node.data):
        return parent, BASE
    if name == "VERSION" and bytes(node.data[:3]) == b"go1" and f"{parent}/bin/go" in tree.nodes:
        return parent, BASE
    if name == "pyvenv.cfg":
        return parent, DEPS
    for suffix, role in ((_NODE_HEADER, BASE), (_CONDA, DEPS), (_COMPOSER, DEPS)):
        if path.endswith(suffix):
            return _unless_system(path.removesuffix(suffix)), role
    found = _PYTHON_ROOT.fullmatch(path)
    return (_unless_system(found["root"]), BASE) if found else ("", "")


def _unless_system(root: str) -> str:
    """A runtime in /usr or /usr/local shares it with others."""
    return "" if root in ("usr", "usr/local") else root


def _claim_package(tree: Tree, claims: Claims, packages: str, info: str, node: Node) -> None:
    """The files of one installed Python distribution."""
    role = CODE if _is_own(tree.nodes.get(f"{packages}/{info}/direct_url.json")) else DEPS
    if role == CODE:
        claims.folders[f"{packages}/{info}"] = CODE
    text = bytes(node.data).decode("utf-8", "surrogateescape")
    try:
        for row in csv.reader(text.splitlines()):
            if row and not row[0].startswith("/"):
                path = posixpath.normpath(posixpath.join(packages, row[0]))
                if path in tree.nodes:
                    claims.paths[path] = role
    except csv.Error:
        return


def _is_own(node: Node | None) -> bool:
    """Was it installed from a folder, so that it is what the image is about?"""
    if node is None or node.kind != FILE or len(node.data) > MAX_FILE_SIZE:
        return False
    try:
        document = json.loads(bytes(node.data))
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "dir_info" in document
