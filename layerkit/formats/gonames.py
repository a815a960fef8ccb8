"""Who wrote a function: from a linker symbol's name to import paths, modules and a role.

Roles are numbers here, innermost first, as in chunk manifests: 0 nobody's (shared), 1 base
(standard library and runtime), 2 deps (other modules), 3 code (the main module). The innermost
role that alone explains a thing owns it: so a symbol that names several packages (an instance of a
generic function, the equality of a composite type) belongs to the outermost of them.

Sources: src/cmd/internal/objabi/path.go PathToPrefix (escapes), src/debug/gosym/symtab.go
PackageName, src/cmd/compile/internal/base/link.go ReservedImports, src/cmd/go/internal/search
IsStandardImportPath (no dot in the first element), go1.20 to go1.27.
"""

from __future__ import annotations

import re
from typing import Final

from layerkit.formats.buildinfo import BuildInfo

__all__ = ["BASE", "CODE", "DEPS", "ROLES", "SHARED", "Owners", "packages_of", "unescape_path"]

ROLES: Final = ("shared", "base", "deps", "code")
SHARED, BASE, DEPS, CODE = range(4)
# Made by the compiler or the linker, of no package: "type:.eq.T", "go:itab.T,I", "go:(*struct…).M"
_RESERVED: Final = re.compile(
    r"^(?:type:(?:\.(?:eq|hash|namedata|importpath)\.)?|go:(?:(?:itab|string|cuinfo)\.)?)"
)
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')  # struct tags in type names
_TOKEN: Final = re.compile(r"[^\s\[\](){}*,;<>]+")
_ESCAPE: Final = re.compile(r"%([0-9a-f]{2})")
_MAIN: Final = "main"  # the linker's name of the main package
NAME_LIMIT: Final = 1 << 16  # characters of a symbol name that are looked at


def unescape_path(prefix: str) -> str:
    """PathToPrefix undone: dots of the last element, quotes, spaces and other bytes are %xx."""
    if "%" not in prefix:
        return prefix
    raw = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), prefix)
    try:
        return raw.encode("latin-1").decode()
    except UnicodeError:
        return raw


def packages_of(symbol: str) -> set[str]:
    """Import paths that a symbol's name holds; empty for names of assembly's local functions.

    "example.com/app/x%2ev2.(*T[net/http.Client]).M.func1" -> {"example.com/app/x.v2", "net/http"}.
    """
    symbol = symbol[:NAME_LIMIT]
    if ":" in symbol:
        symbol = _RESERVED.sub("", symbol, count=1)
    if '"' in symbol:
        symbol = _QUOTED.sub("", symbol)
    first, bracket, rest = symbol.partition("[")
    tokens = [first] if not any(mark in first for mark in " (*{,") else _TOKEN.findall(first)
    if bracket:
        tokens += _TOKEN.findall(rest)
    found = set()
    for token in tokens:
        # the package ends at the first dot behind the last slash
        dot = token.find(".", token.rfind("/") + 1)
        if dot > 0 and token[0] != "." and not token.startswith("go.shape."):
            found.add(unescape_path(token[:dot]))
    return found


class Owners:
    """Roles by import path, for one binary's build info.

    A path in no module is the standard library's: if the modules are known, even one with a dot in
    its first element, since types of its vendored packages say `golang.org/x/…` without `vendor/`.
    Without modules the dot means deps."""

    def __init__(self, info: BuildInfo | None) -> None:
        self._modules: dict[str, int] = {}
        self._main_path = info.path if info else ""
        self._known: dict[str, int] = {_MAIN: CODE}
        self._guess = info is None or info.main is None
        if info is not None:
            for module in info.deps:
                self._modules[module.path] = DEPS
            if info.main is not None:
                self._modules[info.main.path] = CODE
            elif info.path:
                self._modules[info.path] = CODE

    def role_of_package(self, path: str) -> int:
        """The role of an import path, by the module with the longest path that it lies in."""
        role = self._known.get(path)
        if role is None:
            role = self._known[path] = self._find_role(path)
        return role

    def _find_role(self, path: str) -> int:
        if "/vendor/" in path:  # vendored under a GOPATH; the standard library's own start with it
            return DEPS
        prefix = path
        # the main package is linked as "main": another one of its path is the standard library's
        while prefix and not (path == self._main_path and "." not in path.split("/")[0]):
            if prefix in self._modules:
                return self._modules[prefix]
            prefix = prefix.rpartition("/")[0]
        return DEPS if self._guess and "." in path.split("/")[0] else BASE

    def role_of_symbol(self, symbol: str) -> int:
        """The outermost role of the packages that a symbol names; SHARED if it names none."""
        return max(map(self.role_of_package, packages_of(symbol)), default=SHARED)
