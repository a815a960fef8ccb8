"""The part of docs/benchmarks.md about images of others, cut anew. Pure; report.py uses it."""

from __future__ import annotations

from typing import Any

from report_tables import grid, number

Table = dict[str, Any]


def section(rows: Table) -> list[str]:
    """Heading, words and table."""
    return [
        "## Images that others built",
        "One string changes in the code of an image that `docker build` made (bench/foreign.py). "
        "What a node that has the old version moves: docker's changed layers as gzip (its manifest "
        "and config come on top); those of the image that `layerkit split` made of it, pulled "
        "plainly; and of that by layerkit, all documents included. *One copy*: dependencies and "
        "code came in one layer; *anew*: so they did, installed by a machine without a cache, so "
        "all files have new times, which an image keeps.",
        split_table(rows),
    ]


def split_table(rows: Table) -> str:
    lines = []
    for kind, layouts in rows.items():
        for layout, row in layouts.items():
            if "missing" in row:
                lines.append([kind, layout, f"missing: {row['missing']}", "", "", "", ""])
                continue
            lines.append(
                [
                    kind,
                    layout,
                    number(row["image"]),
                    number(row["docker"]),
                    number(row["split"]),
                    f"**{number(row['layerkit'])}**",
                    _ratio(row["layerkit"], row["docker"]),
                ]
            )
    head = ["image", "layers", "whole", "docker's layers", "split, plainly", "split, layerkit"]
    return grid([*head, "of docker's"], lines)


def _ratio(ours: int, docker: int) -> str:
    return f"1/{number(docker // ours)}" if ours <= docker else f"{ours / docker:.1f}"
