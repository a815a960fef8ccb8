"""Which layer a file of anybody's image belongs to: base, deps or code. Pure.

In order, the first that says something wins: the user's rules; the system's package database (dpkg,
dpkg of distroless images, apk), for what it owns is base; what the image says of its runtimes and
packages (`ecosystems`); what a language calls a dependency (Python's site-packages, Node's
node_modules, Java's library jars); a Go binary, which is code; the image's working folder, entry
point and the folders that are there for applications, which are code; the folders of a Linux system
and folders with nothing in them, which are base. What is left is code.

A folder goes with the lowest layer that has something below it, an empty one by its own path. Names
of one file stay together, in the layer of the name that changes most often.
Spec: FHS 3.0; docs/design.md "Split".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from layerkit.errors import FormatError, UsageError
from layerkit.formats.buildinfo import read_build_info
from layerkit.formats.ecosystems import Claims, find_claims
from layerkit.formats.elf import parse_elf
from layerkit.formats.layer import BASE, CODE, DEPS, ROLES
from layerkit.formats.tar import FILE, FOLDER
from layerkit.formats.tree import Node, Tree, parents

__all__ = ["Rule", "assign_roles", "is_go_binary", "parse_rule", "rules_of"]

_BASE, _DEPS, _CODE = (ROLES.index(role) for role in (BASE, DEPS, CODE))
MAX_PATTERN_SIZE: Final = 512
MAX_DATABASE_SIZE: Final = 64 << 20  # bytes of one list of a package database
SYSTEM: Final = {
    *("bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt"),
    *("proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"),
}
_DPKG: Final = re.compile(r"var/lib/dpkg/info/[^/]+\.list")
_DISTROLESS: Final = re.compile(r"var/lib/dpkg/status\.d/[^/]+\.md5sums")
_APK: Final = "lib/apk/db/installed"
_PYTHON: Final = frozenset(("site-packages", "dist-packages"))
_NODE: Final = frozenset(("node_modules", ".yarn", ".pnpm-store"))
_SYSTEM_NODE: Final = re.compile(r"usr/(?:local/)?(?:lib|share)/")  # npm comes with node
_JAR_FOLDERS: Final = frozenset(("lib", "libs", "ext-lib", "dependency", "dependencies"))
_JAVA_APPS: Final = frozenset(("BOOT-INF", "WEB-INF"))
_SPRING_LOADER: Final = "org/springframework/boot/loader/"
# Below a system's folders, but there for what people put into them.
_APPLICATIONS: Final = re.compile(
    r"(?:var/(?:www|task)|usr/share/nginx/html|usr/local/(?:apache2/htdocs|tomcat/webapps)"
    r"|home/[^/]+/[^./][^/]*)(?:/.*)?"
)
# Started to run something else: no image is about them.
_INTERPRETER: Final = re.compile(
    r"(?:ba|da|a|z)?sh|busybox|env|tini|dumb-init|s6-svscan|init|su-exec|gosu"
    r"|python[0-9.]*|node(?:js)?|java|ruby|perl|php"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Paths that match `pattern` are of `role`. In a pattern `*` and `?` stay within a part of the
    path, `**` does not; a pattern that names a folder covers what is below it."""

    role: str
    pattern: str

    def compiled(self) -> re.Pattern[str]:
        return re.compile(_translate(self.pattern), re.DOTALL)


def parse_rule(text: str) -> Rule:
    """``ROLE=GLOB``, the glob from the image's root."""
    role, equals, pattern = text.partition("=")
    pattern = pattern.strip("/")
    if role not in ROLES or not equals or not pattern or len(pattern) > MAX_PATTERN_SIZE:
        raise UsageError(
            f"{text[:80]!r} is not a rule", hint="write deps=opt/app/vendor, or code=srv/**/*.wasm"
        )
    return Rule(role, pattern)


def rules_of(role: str, patterns: Iterable[str]) -> list[Rule]:
    """The rules that give a role to these globs."""
    return [parse_rule(f"{role}={pattern}") for pattern in patterns]


def _translate(pattern: str) -> str:
    out = ""
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out, at = out + "(?:[^/]+/)*", at + 3
        elif pattern.startswith("**", at):
            out, at = out + ".*", at + 2
        elif pattern[at] == "*":
            out, at = out + "[^/]*", at + 1
        elif pattern[at] == "?":
            out, at = out + "[^/]", at + 1
        else:
            out, at = out + re.escape(pattern[at]), at + 1
    return out + "(?:/.*)?"


def assign_roles(
    tree: Tree,
    rules: Sequence[Rule] = (),
    *,
    work_folder: str = "",
    entrypoint: Sequence[str] = (),
) -> dict[str, int]:
    """For each path the number of its role in ROLES. `work_folder` and `entrypoint` are the
    image's own, as its config has them."""
    owned, claims = _owned(tree), find_claims(tree)
    starts = {tree.resolve(part.strip("/")) for part in entrypoint if part.startswith("/")}
    starts = {path for path in starts if not _INTERPRETER.fullmatch(path.rpartition("/")[2])}
    work = work_folder.strip("/")
    compiled = [(ROLES.index(rule.role), rule.compiled()) for rule in rules]
    roles: dict[str, int] = {}
    for path, node in tree.nodes.items():
        role = next((role for role, found in compiled if found.fullmatch(path)), None)
        if role is None and path in owned:
            role = _BASE
        is_app = bool(work and f"{path}/".startswith(f"{work}/")) or bool(
            _APPLICATIONS.fullmatch(path)
        )
        if role is None:
            role = _claimed(path, claims)
        if role is None:
            role = _by_language(path, node, is_app=is_app)
        if role is None and (path in starts or is_app):
            role = _CODE
        if role is None:
            system = path.partition("/")[0] in SYSTEM or node.kind == FOLDER
            role = _BASE if system else _CODE
        roles[path] = role
    _join_names(tree, roles)
    _lower_folders(tree, roles)
    return roles


def _join_names(tree: Tree, roles: dict[str, int]) -> None:
    for names in tree.linked().values():
        highest = max(roles[name] for name in names)
        roles.update(dict.fromkeys(names, highest))


def _lower_folders(tree: Tree, roles: dict[str, int]) -> None:
    """Folders with something below them go to the lowest layer that needs them."""
    needed: dict[str, int] = {}
    for path, node in tree.nodes.items():
        if node.kind == FOLDER and path not in needed:
            continue
        for parent in parents(path):
            needed[parent] = min(needed.get(parent, _CODE), roles[path])
    for path, node in tree.nodes.items():  # empty folders, for those above them
        if node.kind == FOLDER and path not in needed:
            for parent in parents(path):
                needed[parent] = min(needed.get(parent, _CODE), roles[path])
    roles.update({path: role for path, role in needed.items() if path in roles})
    if "" in roles:
        roles[""] = _BASE


# --- what a language knows ---------------------------------------------------------------------


def _claimed(path: str, claims: Claims) -> int | None:
    """What the image says of its packages, by name; then of the folder. What pip installs into a
    runtime's own folder is no part of that runtime."""
    found = claims.paths.get(path)
    if found is None and _PYTHON.isdisjoint(path.split("/")):
        found = claims.of_folder(path)
    return None if found is None else ROLES.index(found)


def _by_language(path: str, node: Node, *, is_app: bool) -> int | None:
    parts = path.split("/")
    folders = parts[:-1] if node.kind != FOLDER else parts
    if not _PYTHON.isdisjoint(folders):
        return _DEPS
    if not _NODE.isdisjoint(folders) or parts[-1] in (".pnp.cjs", ".pnp.loader.mjs"):
        return _BASE if _SYSTEM_NODE.match(path) and not is_app else _DEPS
    if parts[-1].endswith(".jar") and not _JAR_FOLDERS.isdisjoint(folders):
        is_systems = parts[0] == "usr" and not is_app and _JAVA_APPS.isdisjoint(folders)
        return _BASE if is_systems else _DEPS  # some come with a JDK or a server
    if _SPRING_LOADER in path:
        return _DEPS
    if folders and folders[0] not in SYSTEM and not _JAVA_APPS.isdisjoint(folders):
        return _CODE
    if node.kind == FILE and is_go_binary(node):
        return _CODE
    return None


def is_go_binary(node: Node) -> bool:
    """Did Go's linker make this file? By its build info, which a stripped binary keeps."""
    if bytes(node.data[:4]) != b"\x7fELF":
        return False
    try:
        return bool(read_build_info(parse_elf(bytes(node.data))).release)
    except FormatError:
        return False


# --- what the system's packages own ------------------------------------------------------------


def _owned(tree: Tree) -> set[str]:
    """Paths that a package database of the image claims, links on the way resolved."""
    found: set[str] = set()
    for path, node in tree.nodes.items():
        if node.kind != FILE or len(node.data) > MAX_DATABASE_SIZE:
            continue
        if path == _APK:
            claimed: Iterable[str] = _read_apk(node.data)
        elif _DPKG.fullmatch(path):
            claimed = _lines(node.data)
        elif _DISTROLESS.fullmatch(path):
            claimed = (line.partition("  ")[2] for line in _lines(node.data))
        else:
            continue
        found.update(tree.resolve(one.strip("/")) for one in claimed)
    return found


def _lines(data: bytes | memoryview) -> list[str]:
    return bytes(data).decode("utf-8", "surrogateescape").splitlines()


def _read_apk(data: bytes | memoryview) -> Iterator[str]:
    """apk's database: `F:` names a folder, `R:` a file in it."""
    folder = ""
    for line in _lines(data):
        if line.startswith("F:"):
            folder = line[2:]
            yield folder
        elif line.startswith("R:"):
            yield f"{folder}/{line[2:]}"
