"""Tables, numbers and verdicts as docs/benchmarks.md has them. Pure."""

from __future__ import annotations


def grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def verdict(value: float, goal: float | None, better_low: bool = True) -> str:
    if goal is None:
        return ""
    return "yes" if (value <= goal) == better_low or value == goal else "**missed**"


def number(size: int | float) -> str:
    return f"{size:,}" if isinstance(size, int) else f"{size:,.3g}"
