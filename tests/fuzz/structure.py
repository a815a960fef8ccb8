"""Damage to a label table as a value: each six bytes of the input are one change of one number.

Damaged bytes of a form mostly end at a length or a count. This damage is serialized anew, so what
it asks for reaches the arithmetic behind the parser: sizes, strides, shifts and zones at their
limits, rules and patterns where they do not belong, ids and marks anywhere in the body.
"""

from __future__ import annotations

import copy
import struct
from dataclasses import replace

import numpy as np

from layerkit.formats.addressfree import model, wire
from layerkit.formats.addressfree.model import Int64s, Labels, Pattern

__all__ = ["change"]

# Where limits, widths and signs are
NUMBERS = (
    0, 1, 2, 3, 4, 7, 8, 9, 16, 17, 31, 32, 63, 64, 127, 128, 255, 256, 4095, 4096, 65535, 65536,
    (1 << 26) - 1, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, (1 << 61), (1 << 62) - 1,
    (1 << 63) - 1, model.NEW, model.TAG, 0x80000000, 0x01000000, 0xFEFFFFFF,
)  # fmt: skip


def change(labels: Labels, skip: Int64s, body: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Label table and body after the changes that `data` says. Raises ValueError, LookupError or
    OverflowError where they cannot be written down."""
    labels, out = copy.deepcopy(labels), bytearray(body)
    for part in zip(*[iter(data)] * 6, strict=False):
        what, low, high, choice, first, second = part
        value = NUMBERS[choice % len(NUMBERS)] if choice < 200 else first | second << 8
        skip = _one(labels, skip, out, what, (low | high << 8, value, second))
    explicit = int((labels.rule == model.RULE_EXPLICIT).sum())
    labels.explicit = np.resize(labels.explicit, explicit).astype(np.uint32)
    return wire.serialize_labels(labels, skip), bytes(out)


def _one(
    labels: Labels, skip: Int64s, out: bytearray, what: int, numbers: tuple[int, int, int]
) -> Int64s:
    index, value, other = numbers
    at = index % max(1, labels.count)
    match what % 12:
        case 0:
            labels.size[at] = value
        case 1:  # the border between two labels
            step = min(value, int(labels.size[at]))
            labels.size[at] -= step
            labels.size[(at + 1) % labels.count] += step
        case 2:
            labels.pattern[at] = value % len(labels.patterns)
        case 3:
            labels.rule[at] = value % model.RULE_COUNT
        case 4:
            _change_region(labels, index, value, other)
        case 5:
            _change_kind(labels, index, value, other)
        case 6:
            _change_pattern(labels, index, value, other)
        case 7:
            if len(labels.explicit):
                labels.explicit[index % len(labels.explicit)] = value & 0xFFFFFFFF
        case 8:
            return np.sort(np.append(skip, value % (len(out) + 1)))
        case 9:
            labels.salt, labels.machine = value & 0xFFFFFFFF, other % 2
        case 10:
            struct.pack_into("<I", out, index % (len(out) - 4), value & 0xFFFFFFFF)
        case _:
            for name in ("region_of", "start", "size", "pattern", "rule"):  # a label goes
                setattr(labels, name, np.delete(getattr(labels, name), at))
    return skip


def _change_region(labels: Labels, index: int, value: int, field: int) -> None:
    regions = list(labels.regions)
    at = index % len(regions)
    names = ("addr", "offset", "size", "has_words", "is_text", "space")
    name = names[field % len(names)]
    kept = {"has_words": bool(value & 1), "is_text": bool(value & 1), "space": value & 0xFF}
    regions[at] = replace(regions[at], **{name: kept.get(name, value)})
    labels.regions = tuple(regions)


def _change_kind(labels: Labels, index: int, value: int, field: int) -> None:
    kinds = list(labels.kinds)
    at = index % len(kinds)
    names = ("base_region", "base_delta", "shift", "counter", "zone", "zone_pattern", "is_name")
    name = names[field % len(names)]
    limits = {"base_region": len(labels.regions), "zone": len(labels.regions), "shift": 32}
    limits |= {"counter": wire.COUNTER_LIMIT, "zone_pattern": len(labels.patterns), "is_name": 2}
    new = value if name == "base_delta" else value % limits[name]
    kinds[at] = replace(kinds[at], **{name: bool(new) if name == "is_name" else new})
    labels.kinds = tuple(kinds)


def _change_pattern(labels: Labels, index: int, value: int, field: int) -> None:
    patterns = list(labels.patterns)
    at = index % len(patterns)
    old, kind = patterns[at], index % len(labels.kinds)
    made: dict[int, Pattern] = {
        0: replace(old, start=value),
        1: replace(old, stride=value),
        2: replace(old, derived=value % 3),
        3: replace(old, key=(value & 0xFFFF, old.key[1])),
        4: replace(old, key=(old.key[0], value & 0xFFFF)),
        5: replace(old, fixed=(*old.fixed, (value, kind))),
        6: replace(old, repeated=(*old.repeated, (value, kind)), stride=max(4, old.stride)),
        7: replace(old, fixed=(), repeated=()),
    }
    patterns[at] = made[field % len(made)]
    labels.patterns = tuple(patterns)
