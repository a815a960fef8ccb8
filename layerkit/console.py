"""What a person sees: results, tables and JSON on stdout; talk, progress and errors on stderr.

The only user of rich, which loads when something is drawn, never for ``--help``. Progress is silent
when stderr is not a terminal or with ``-q``. Not here: deciding what to show (cli), exit statuses
(errors).
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from layerkit.errors import LayerkitError

__all__ = ["Console", "Progress", "human_size", "redact", "render_error"]

_SECRETS = re.compile(r"(?i)(https?://)[^/\s@]*@")
_QUERIES = re.compile(r"(https?://[^\s?]*)\?[^\s]*")


class Progress(Protocol):
    """A running count of bytes."""

    def total(self, size: int) -> None: ...
    def advance(self, size: int) -> None: ...


def human_size(size: int) -> str:
    """12345 -> "12.1 KiB"; exact below 1 KiB."""
    if size < 1 << 10:
        return f"{size} B"
    for unit, shift in (("KiB", 10), ("MiB", 20), ("GiB", 30)):
        if size < 1 << (shift + 10) or unit == "GiB":
            return f"{size / (1 << shift):.1f} {unit}"
    raise AssertionError("unreachable")


def redact(text: str) -> str:
    """Drop user names, passwords and query strings from the URLs in `text`."""
    return _QUERIES.sub(r"\1?…", _SECRETS.sub(r"\1", text))


def render_error(error: LayerkitError) -> list[str]:
    """The lines of docs/errors.md: what, then why, then what to try.

    A failed tool's own output (compile errors with file and line) follows its cause unchanged.
    """
    lines = [f"layerkit: error: {redact(error.message)} [{error.code}]"]
    cause, *more = redact(error.cause).strip().splitlines() or [""]
    if cause:
        lines.append(f"layerkit: cause: {cause}")
        lines += [f"                 {line}" for line in more]
    if error.hint:
        lines.append(f"layerkit: hint:  {redact(error.hint)}")
    return lines


def _outline(value: Mapping[str, object], indent: str) -> Iterator[str]:
    width = max((len(key) for key in value), default=0)
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield f"{indent}{key}"
            yield from _outline(item, indent + "  ")
        elif isinstance(item, list) and item and all(isinstance(part, Mapping) for part in item):
            yield f"{indent}{key}"
            for part in item:
                first, *rest = _outline(part, indent + "    ") or [""]
                yield f"{indent}  - {first.strip()}"
                yield from rest
        elif isinstance(item, list):
            yield f"{indent}{key:{width}}  {' '.join(map(str, item))}".rstrip()
        else:
            yield f"{indent}{key:{width}}  {item}".rstrip()


class _Silent:
    """Progress that nobody watches."""

    def total(self, size: int) -> None:
        pass

    def advance(self, size: int) -> None:
        pass


class Console:
    """Where output goes. `quiet` silences talk, `verbose` 2 shows every traceback."""

    def __init__(self, *, quiet: bool = False, verbose: int = 0) -> None:
        self.quiet = quiet
        self.verbose = verbose

    def result(self, text: str) -> None:
        """The result itself, on stdout."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def document(self, value: Mapping[str, object]) -> None:
        """One JSON document on stdout."""
        self.result(json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False))

    def say(self, text: str) -> None:
        """Talk, on stderr: silent unless a person sits there, or with -v."""
        if self.verbose > 0 or (not self.quiet and sys.stderr.isatty()):
            sys.stderr.write(text + "\n")

    def warn(self, text: str) -> None:
        """A warning, on stderr, silent only with -q."""
        if not self.quiet:
            sys.stderr.write(f"layerkit: warning: {redact(text)}\n")

    def error(self, error: LayerkitError) -> None:
        sys.stderr.write("\n".join(render_error(error)) + "\n")
        if self.verbose >= 2:
            traceback.print_exception(error)

    def crash(self, error: BaseException) -> None:
        """A bug of ours: the traceback, then one line."""
        traceback.print_exception(error)
        name = type(error).__name__
        sys.stderr.write(f"layerkit: error: unexpected {name}: {redact(str(error))} [UNKNOWN]\n")

    def outline(self, value: Mapping[str, object]) -> None:
        """A document for people: one `key value` a line, indented like its nesting."""
        for line in _outline(value, ""):
            self.result(line)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table on stdout; numbers (every column but the first) are set right."""
        from rich import box
        from rich.console import Console as RichConsole
        from rich.table import Table

        table = Table(title=title or None, box=box.SIMPLE, title_justify="left")
        for at, column in enumerate(columns):
            table.add_column(column, justify="left" if at == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        width = None if sys.stdout.isatty() else 160
        RichConsole(file=sys.stdout, width=width, highlight=False).print(table)

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """A bar of bytes on stderr while the body runs."""
        if self.quiet or not sys.stderr.isatty():
            yield _Silent()
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn
        from rich.progress import Progress as RichProgress

        with RichProgress(
            "{task.description}",
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=RichConsole(file=sys.stderr),
            transient=True,
        ) as bar:
            task = bar.add_task(what, total=None)

            class _Bar:
                def total(self, size: int) -> None:
                    bar.update(task, total=size)

                def advance(self, size: int) -> None:
                    bar.advance(task, size)

            yield _Bar()
