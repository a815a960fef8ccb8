"""The costs of the fleet on paper (fleet.py), from what was measured; only the roles are worked out
anew, from the forms of bench/workloads.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import ours
from build import EDITS, build_workload, others
from fleet import KINDS, ROLES, SENSITIVITY, Costs, Fleet, Table, summary

from layerkit.edges.sources import read_base
from layerkit.formats.layer import build_tar
from layerkit.formats.layerform import PART_BINARY, join_parts
from layerkit.formats.ranges import chunk_roles
from layerkit.formats.roles import layer_roles


def role_costs(cases: Sequence[str]) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
    """For each edit and role: the share of the new image's bytes, by chunks, that a node holds
    which has the old version and the other functions of bench/workloads; and each role's share.
    The base layer counts as base: it is the same in old and new."""
    base_layer = len(build_tar(read_base()[0]))
    others_held = {raw for name in others() for raw in _ids_of(name)}
    hits, sizes_all = [], np.zeros(len(ROLES))
    for case in cases:
        new = _layer_form(EDITS[case][1])
        held = others_held | set(_ids_of(EDITS[case][0]))
        manifest = ours.chunk_manifest(new)
        roles = np.array(chunk_roles(manifest.sizes, layer_roles(new, 3).form))
        sizes = np.array(manifest.sizes)
        mine = np.array([raw in held for raw in manifest.list_raw_ids()])
        row = []
        for role in range(1, len(ROLES) + 1):
            same = base_layer if role == 1 else 0
            whole = int(sizes[roles == role].sum()) + same
            row.append(float((sizes[(roles == role) & mine].sum() + same) / whole) if whole else 1)
            sizes_all[role - 1] += whole
        hits.append(tuple(row))
    return tuple(hits), tuple((sizes_all / sizes_all.sum()).tolist())


def _ids_of(name: str) -> list[bytes]:
    return ours.chunk_manifest(_layer_form(name)).list_raw_ids()


def _layer_form(name: str) -> bytes:
    return join_parts([(PART_BINARY, ours.form_of(build_workload(name)))])


def costs_from(tables: Mapping[str, Any]) -> Costs:
    """The measured costs, from a results document's tables."""
    rows = {name: table["rows"] for name, table in tables.items()}
    deltas, chunks = rows["deltas"], rows["chunks"]
    pulls = rows["first_pulls"]["pulls"]
    hits, shares = role_costs(list(KINDS.values()))
    empty = [one["product"]["empty"]["moved_size"] for one in pulls.values()]
    held = [one["product"]["held"]["moved_size"] for one in pulls.values()]
    packed = [one["form_packed"] for one in pulls.values()]
    diff = statistics.median(rows["speeds"]["operations"]["diff"]["seconds"])
    load = rows.get("load", {})
    rates = [
        load["agents"] / statistics.median(one["seconds"] for one in row["agents"]["layerkit"])
        for row in load.get("changes", {}).values()
    ]
    cases = KINDS.values()
    return Costs(
        tuple(deltas[case]["whole, gzip -6"]["size"] for case in cases),
        tuple(chunks[case]["manifest"] + chunks[case]["chunks"] for case in cases),
        tuple(deltas[case]["layerkit"]["size"] for case in cases),
        max(0, round(statistics.median(np.subtract(empty, packed)))),
        round(statistics.median(held)),
        round(statistics.median(empty)),
        diff,
        min(rates) if rates else 400.0,
        hits,
        shares,
    )


def measure(tables: Mapping[str, Any], fleet: Fleet | None = None) -> Table:
    """The day as assumed and with each assumption changed."""
    fleet, costs = fleet or Fleet(), costs_from(tables)
    table: Table = {"fleet": asdict(fleet), "costs": asdict(costs), "kinds": list(KINDS)}
    table["days"] = {
        name: summary(replace(fleet, **changed), costs) for name, changed in SENSITIVITY.items()
    }
    return table


if __name__ == "__main__":
    import report

    newest = report.newest_results()
    assert newest is not None, "no results: run bench/run.py"
    print(json.dumps(measure(json.loads(newest.read_text())["tables"]), indent=1))
