"""The file tree of a pull, made in a thread while the pull goes on: a layer is written as soon as
it is verified, beside the target. It is shown only after the image is committed.

With `Spares` only the layers above a spare tree are written; `make_spare` makes the next one, when
nobody waits. The store is not for this thread: layers are handed to it as bytes.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from layerkit.digest import Digest
from layerkit.edges.disk import Disk
from layerkit.edges.rootfs import Limits, Rights, StagedTree, stage_layers
from layerkit.edges.spares import Spares
from layerkit.errors import LayerkitError

__all__ = ["Background", "Target", "TreeWriter"]

_END: Final = None  # in the queue: no more layers
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Background(Generic[T]):
    """One call in a thread; `result` waits for it, and raises what it raised."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append(self._call())
        except BaseException as exc:  # raised again where somebody waits for it
            self._error = exc

    def wait(self) -> None:
        self._thread.join()

    def result(self) -> T:
        self.wait()
        if self._error is not None:
            raise self._error
        return self._found[0]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a file tree goes, of all layers but the highest `without`."""

    path: Path
    disk: Disk
    limits: Limits
    rights: Rights
    spares: Spares | None = None
    without: int = 0

    @property
    def can_start(self) -> bool:
        """May it start with a spare tree? Those have the rights that are usual."""
        usable = self.spares is not None and not self.without and self.rights == Rights()
        return usable and self.spares is not None and self.spares.fits(self.path)


class TreeWriter:
    """One tree. `begin`, `feed` each layer from `next` up to `end`, `finish`; or `abandon`."""

    def __init__(self, target: Target, diff_ids: Sequence[Digest]) -> None:
        self._target = target
        self.diff_ids = list(diff_ids)
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._start = Background(self._take_spare)
        self._work = Background(self._write)
        self._fed = 0
        self.end = len(diff_ids) - target.without

    @property
    def next(self) -> int:
        """The layer that is wanted next."""
        return self._start.result()[0] + self._fed

    def feed(self, plain: bytes) -> None:
        """The verified tar of the layer `next`. After the last one the tree is flushed, while the
        pull commits."""
        self._queue.put(plain)
        self._fed += 1
        if self.next == self.end:
            self._queue.put(_END)

    def finish(self) -> StagedTree:
        """The tree, whole and durable; raises what went wrong."""
        self._queue.put(_END)
        return self._work.result()

    @property
    def has_spare(self) -> bool:
        return self._start.result()[0] > 0

    def abandon(self) -> None:
        """Nothing of it stays."""
        with contextlib.suppress(LayerkitError):  # it was told already, or another error is
            self.finish().discard()

    def _take_spare(self) -> tuple[int, Path | None]:
        spares = self._target.spares
        if spares is None or not self._target.can_start:
            return 0, None
        return spares.take(self.diff_ids)

    def _write(self) -> StagedTree:
        target, (_, start) = self._target, self._start.result()
        rights, limits = target.rights, target.limits
        return stage_layers(self._layers(), target.path, target.disk, limits, rights, start)

    def _layers(self) -> Iterator[bytes]:
        size = 0
        while (plain := self._queue.get()) is not _END:
            size += len(plain)
            self._target.limits.check_size(size)
            yield plain
