"""Far runs: old bytes that are like new bytes of a gap, but stand elsewhere.

New code resembles old code of other functions. A dictionary with all of the old form would find
that, but the encoder takes more than a microsecond for each byte of it; so blocks of the old form
are picked that share rare 8-byte words with the gaps, and told in the delta.

Spec: docs/format.md "Delta".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from layerkit.formats.cursor import Reader, Writer

__all__ = ["Run", "choose_far", "read_far", "write_far"]

BLOCK: Final = 2048  # bytes; of 256 to 4096 the best on small and middle edits
WORD: Final = 8  # bytes
TABLE_BITS: Final = 22
STEP: Final = 1 << 22  # bytes of old looked at together: bounds memory
COMMON: Final = 64  # a word in more blocks than that says nothing about any
LEAST_WORDS: Final = 12  # that a block must bring alone: telling it costs two or three bytes

Run = tuple[int, int]  # start in old, bytes


def choose_far(old: bytes, data: bytes, near: bytes, limit: int) -> list[Run]:
    """Blocks of `old` worth having besides `near` for `data`, at most `limit` bytes, ascending."""
    if min(len(old), len(data)) < LEAST_WORDS + WORD:
        return []
    wanted = np.zeros(1 << TABLE_BITS, bool)
    wanted[_words(data)] = True
    wanted[_words(near)] = False
    if not wanted.any():
        return []
    found, places = [], []
    for start in range(0, len(old), STEP):
        words = _words(old[start : start + STEP + WORD - 1])
        hits = np.flatnonzero(wanted[words])
        found.append(words[hits])
        places.append((hits + start) // BLOCK)
    word, block = np.concatenate(found).astype(np.int64), np.concatenate(places)
    pair = np.unique(word << 32 | block)
    return _runs(_best_blocks(pair >> 32, pair & 0xFFFFFFFF, limit // BLOCK), len(old))


def _best_blocks(
    word: npt.NDArray[np.int64], block: npt.NDArray[np.int64], limit: int
) -> npt.NDArray[np.int64]:
    """Of (word, block) pairs, ascending: give each word to the block that has most, count again,
    and keep the blocks that still have enough."""
    _, word, count = np.unique(word, return_inverse=True, return_counts=True)
    rare = count[word] <= COMMON
    word, block = word[rare], block[rare]
    if not len(word):
        return block
    score = np.bincount(block, 1.0 / count[word])
    order = np.lexsort((block, -score[block], word))
    word, block = word[order], block[order]
    first = np.flatnonzero(np.diff(word, prepend=-1))
    own = np.bincount(block[first])
    chosen = np.flatnonzero(own >= LEAST_WORDS)
    if len(chosen) > limit:
        chosen = np.sort(chosen[np.argsort(-own[chosen], kind="stable")[:limit]])
    return chosen


def _words(data: bytes) -> npt.NDArray[np.uint32]:
    """Hash of the 8 bytes from each place on, to TABLE_BITS."""
    raw = np.frombuffer(data, np.uint8)
    count = len(raw) - WORD + 1
    if count <= 0:
        return np.zeros(0, np.uint32)
    half = np.empty(len(raw) - 3, np.uint32)
    for k in range(4):
        size = (len(raw) - k) // 4
        half[k::4] = np.frombuffer(data, "<u4", size, k)[: len(half[k::4])]
    mixed = half[:count] * np.uint32(0x9E3779B1)
    mixed ^= mixed >> np.uint32(15)
    mixed += half[4 : 4 + count]
    mixed *= np.uint32(0x85EBCA77)
    return mixed >> np.uint32(32 - TABLE_BITS)


def _runs(blocks: npt.NDArray[np.int64], end: int) -> list[Run]:
    """Ascending blocks as runs of bytes."""
    if not len(blocks):
        return []
    cut = np.flatnonzero(np.diff(blocks) > 1)
    low = blocks[np.concatenate(([0], cut + 1))] * BLOCK
    high = np.minimum((blocks[np.concatenate((cut, [len(blocks) - 1]))] + 1) * BLOCK, end)
    return list(zip(low.tolist(), (high - low).tolist(), strict=True))


def write_far(runs: Sequence[Run]) -> bytes:
    """Count, then for each: blocks between it and the one before, its blocks less one."""
    out = Writer()
    out.varint(len(runs))
    at = 0
    for start, size in runs:
        out.varint(start // BLOCK - at)
        out.varint(-(-size // BLOCK) - 1)
        at = -(-(start + size) // BLOCK)
    return out.getvalue()


def read_far(reader: Reader, old_size: int, limit: int) -> list[Run]:
    """The twin of `write_far`: all lie inside the old forms and come to `limit` bytes at most."""
    runs: list[Run] = []
    at, blocks, left = 0, -(-old_size // BLOCK), limit // BLOCK
    for _ in range(reader.varint(min(blocks, left), "count of far runs")):
        at += reader.varint(blocks - at, "blocks before a far run")
        size = reader.varint(min(blocks - at, left) - 1, "blocks of a far run") + 1
        runs.append((at * BLOCK, min((at + size) * BLOCK, old_size) - at * BLOCK))
        at, left = at + size, left - size
    return runs
