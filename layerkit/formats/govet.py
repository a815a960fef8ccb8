"""What `go vet -json` says, as findings. Pure; jobs/vet runs it.

go writes, for each package, a line `# path` and a JSON object {package: {analyzer: findings}};
findings are a list of {posn, message}, or {error}. What else it says stands between these.
Spec: golang.org/x/tools/go/analysis/internal/analysisflags (JSONTree), v0.38.0.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from layerkit.errors import FormatError

__all__ = ["Finding", "parse_findings"]

MAX_OUTPUT_SIZE: Final = 256 << 20  # bytes
_PLACE: Final = re.compile(r"(?P<file>.*?):(?P<line>\d+)(?::(?P<column>\d+))?$")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding; line and column count from 1, 0 where go does not say."""

    file: str
    line: int
    column: int
    message: str
    analyzer: str
    package: str


def parse_findings(raw: bytes) -> tuple[tuple[Finding, ...], str]:
    """The findings, each once, by place; and everything else that go said."""
    if len(raw) > MAX_OUTPUT_SIZE:
        raise FormatError(f"go vet: over {MAX_OUTPUT_SIZE} bytes")
    text, decoder = raw.decode("utf-8", "replace"), json.JSONDecoder()
    found: set[Finding] = set()
    others: list[str] = []
    at = 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end + 1
        line = text[at:end]
        if line.startswith("{"):
            try:
                tree, end = decoder.raw_decode(text, at)
                found.update(_findings(tree))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
                raise FormatError("go vet: output is no tree of findings", cause=str(exc)) from exc
        elif line.strip() and not line.startswith("# "):
            others.append(line)
        at = end
    place = sorted(found, key=lambda f: (f.file, f.line, f.column, f.analyzer, f.message))
    return tuple(place), "".join(others)


def _findings(tree: dict[str, dict[str, object]]) -> list[Finding]:
    found = []
    for package, by_analyzer in tree.items():
        for analyzer, entries in by_analyzer.items():
            if not isinstance(entries, list):
                continue  # {"error": ...}: it is in the exit status, too
            for entry in entries:
                place = _PLACE.match(entry["posn"])
                if place is None:
                    raise ValueError(f"place {entry['posn'][:80]!r}")
                line, column = int(place["line"]), int(place["column"] or 0)
                message = str(entry["message"])
                found.append(
                    Finding(place["file"], line, column, message, analyzer, package.split(" ")[0])
                )
    return found
