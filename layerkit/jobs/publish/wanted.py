"""What a push shall put beside the image, and who is told how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from layerkit.formats.reference import Reference

__all__ = ["UPDATE_COUNT", "Extras", "Progress"]

UPDATE_COUNT: Final = 3  # versions before a new one: nodes that watch have one of them


class Progress(Protocol):
    """A running count of bytes."""

    def total(self, size: int) -> None: ...
    def advance(self, size: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Extras:
    """Updates are made from the last `update_count` images that the tag named, and from `olds`.
    `packs`: of chunks, too; None: where there is no update. `forms`: all of them, too, False: only
    of layers that an older version has; None: all where there is no update."""

    update_count: int = UPDATE_COUNT
    olds: Sequence[Reference] = ()
    packs: bool | None = None
    forms: bool | None = None
