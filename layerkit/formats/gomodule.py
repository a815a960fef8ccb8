"""A Go module as a module proxy offers it, and the lines of go.mod and go.sum that name it.

Pure; `edges.goruntime` writes it where go looks. The version is made of the module's content, so
that a go.sum never names other bytes than its author had: `v0.1.0-h` and twelve hex digits.
Spec: https://go.dev/ref/mod#goproxy-protocol, #go-sum-files; golang.org/x/mod/sumdb/dirhash (h1:).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from layerkit.errors import FormatError

__all__ = ["GoModule", "find_requirement", "replace_sums", "set_requirement"]

_MODULE: Final = re.compile(r"^module\s+(\S+)\s*$", re.M)
_TIME: Final = "2026-01-01T00:00:00Z"  # go shows it, and needs one
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)
_WORD: Final = r"[^\s()]+"


@dataclass(frozen=True, slots=True)
class GoModule:
    """A module: its files by their paths with slashes, go.mod among them; `release` is X.Y.Z."""

    release: str
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def path(self) -> str:
        found = _MODULE.search(self.files.get("go.mod", b"").decode("utf-8", "replace"))
        if found is None:
            raise FormatError("go.mod names no module")
        return found[1]

    @property
    def version(self) -> str:
        """`vX.Y.Z-h<hex>`; the letter keeps it a semantic version when the digits begin with 0."""
        lines = "".join(f"{name} {_sha256(data)}\n" for name, data in sorted(self.files.items()))
        return f"v{self.release}-h{_sha256(lines.encode())[:12]}"

    def sums(self) -> tuple[str, str]:
        """The lines of go.sum, without their ends."""
        prefix = f"{self.path}@{self.version}/"
        whole = _hash1({prefix + name: data for name, data in self.files.items()})
        only_mod = _hash1({"go.mod": self.files["go.mod"]})
        return (
            f"{self.path} {self.version} {whole}",
            f"{self.path} {self.version}/go.mod {only_mod}",
        )

    def proxy_files(self) -> dict[str, bytes]:
        """What a proxy serves, by paths beneath its root. The module's path has no capitals, which
        the protocol would escape."""
        folder, version = f"{self.path}/@v", self.version
        info = json.dumps({"Version": version, "Time": _TIME}).encode()
        return {
            f"{folder}/list": f"{version}\n".encode(),
            f"{folder}/{version}.info": info,
            f"{folder}/{version}.mod": self.files["go.mod"],
            f"{folder}/{version}.zip": self._zip(),
        }

    def _zip(self) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in sorted(self.files.items()):
                info = zipfile.ZipInfo(f"{self.path}@{self.version}/{name}", _ZIP_TIME)
                archive.writestr(info, data)
        return out.getvalue()


def find_requirement(go_mod: str, path: str) -> str | None:
    """The version of module `path` that a go.mod requires; None if it does not, or replaces it."""
    if re.search(rf"^\s*(?:replace\s+)?{re.escape(path)}\s+(?:{_WORD}\s+)?=>", go_mod, re.M):
        return None
    found = re.search(rf"^\s*(?:require\s+)?{re.escape(path)}\s+(v{_WORD})", go_mod, re.M)
    return found[1] if found else None


def set_requirement(go_mod: str, path: str, version: str) -> str:
    """The go.mod with that version of module `path` required, in its place or at the end."""
    if find_requirement(go_mod, path) is None:
        return f"{go_mod.rstrip()}\n\nrequire {path} {version}\n"
    line = rf"^(\s*(?:require\s+)?{re.escape(path)}\s+)v{_WORD}"
    return re.sub(line, lambda found: found[1] + version, go_mod, flags=re.M)


def replace_sums(go_sum: str, path: str, lines: tuple[str, ...]) -> str:
    """The go.sum with `lines` for module `path` in place of those that it has, sorted."""
    kept = [line for line in go_sum.splitlines() if line and line.split(" ", 1)[0] != path]
    return "".join(f"{line}\n" for line in sorted([*kept, *lines]))


def _hash1(files: Mapping[str, bytes]) -> str:
    lines = "".join(f"{_sha256(data)}  {name}\n" for name, data in sorted(files.items()))
    return "h1:" + base64.b64encode(hashlib.sha256(lines.encode()).digest()).decode("ascii")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
