"""Which updates were prepared, and how large they are: for the page. Kept on the shelf, so that
every server over a storage shows the same; losing it loses nothing else."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.storage import Shelf
from layerkit.errors import FormatError

__all__ = ["Ledger", "Prepared"]

KEY: Final = "prepared/1"
MAX_COUNT: Final = 16  # of a repository, the last ones
MAX_TOTAL: Final = 20_000  # of all: 4 MB
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An update: both ends, its bytes, and those of a plain pull of the layers that it brings."""

    old: Digest
    new: Digest
    size: int
    whole_size: int


class Ledger:
    """Prepared updates by repository, the newest first. Safe for threads."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self._shelf = shelf
        self._lock = threading.Lock()
        self._entries: dict[str, list[Prepared]] | None = None  # None: this server prepares nothing
        self._is_saved = True

    def add(self, name: str, prepared: Prepared) -> None:
        """Put it before the others."""
        with self._lock:
            entries = self._entries if self._entries is not None else self._load()
            ends = (prepared.old, prepared.new)
            others = [one for one in entries.get(name, []) if (one.old, one.new) != ends]
            entries[name] = [prepared, *others][:MAX_COUNT]
            self._entries, self._is_saved = entries, False

    def read(self) -> dict[str, list[Prepared]]:
        """What this server prepared, or else what another one has."""
        with self._lock:
            entries = self._entries if self._entries is not None else self._load()
            return {name: list(prepared) for name, prepared in entries.items()}

    def _load(self) -> dict[str, list[Prepared]]:
        raw = self._shelf.get(KEY) if self._shelf is not None else None
        try:
            return _parse(raw) if raw else {}
        except FormatError as exc:
            _log.warning("the list of prepared updates is dropped: %s", exc.message)
            return {}

    def save(self) -> None:
        """Put it on the shelf if there is something new."""
        with self._lock:
            if self._is_saved or self._shelf is None:
                return
            self._is_saved = True
            raw = _serialize(self._entries or {})
        self._shelf.put(KEY, raw)


def _serialize(entries: dict[str, list[Prepared]]) -> bytes:
    document = {
        name: [[str(one.old), str(one.new), one.size, one.whole_size] for one in prepared]
        for name, prepared in sorted(entries.items())[: MAX_TOTAL // MAX_COUNT]
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _parse(raw: bytes) -> dict[str, list[Prepared]]:
    """Of this version of ours or another: anything may be in it."""
    try:
        return {
            str(name): [
                Prepared(Digest.parse(old), Digest.parse(new), int(size), int(whole))
                for old, new, size, whole in entries
            ]
            for name, entries in json.loads(raw).items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise FormatError("it is not a list of updates", cause=str(exc)[:200]) from exc
