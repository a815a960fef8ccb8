"""A fleet on paper: 10,000 nodes, 1,000 functions, a deploy of each a day. What leaves the servers
by each method, how many servers that takes, how often a delta is there already, and what share of
each role's bytes the nodes hold.

Sizes and seconds are measured (`Costs`; fleet_costs.py has them from bench/results); the rest are
assumptions, and all of them are in `Fleet`, printed with the result, and varied one by one
(SENSITIVITY). One simulated day, the same for the same seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Table = dict[str, Any]
Int64s = NDArray[np.int64]
ROLES = ("base", "deps", "code")
METHODS = ("whole layers", "chunks", "deltas")
KINDS = {  # what a deploy changes -> which measured edit stands for it
    "a string": "base -> a_literal",
    "a log line": "base -> b_logline",
    "a new import": "base -> c1_base64",
    "a patch of a module": "zerolog 1.33.0 -> 1.34.0",
    "a minor of a module": "zerolog 1.34.0 -> 1.35.1",
    "a large new import": "base -> c2_template",
    "another program": "base -> f2",
}


@dataclass(frozen=True)
class Costs:
    """What one deploy costs one node, by kind in the order of KINDS: bytes by each method; and what
    is the same for all kinds."""

    whole: tuple[int, ...]  # bytes of the code layer as it ships
    chunks: tuple[int, ...]
    deltas: tuple[int, ...]
    base_layer: int  # bytes of the base layer as it ships
    first_held: int  # bytes of a first pull beside other functions
    first_empty: int  # bytes of a first pull onto an empty node, all layers
    diff_seconds: float  # of one core, to make one delta
    update_rate: float  # updates a second that one server answers
    hits: tuple[tuple[float, ...], ...]  # by kind, by role: share of the bytes that the old holds
    shares: tuple[float, ...]  # by role: share of an image's bytes


@dataclass(frozen=True)
class Fleet:
    """The assumptions. Shares are of 1."""

    nodes: int = 10_000
    functions: int = 1_000
    deploys: float = 1.0  # of each function a day
    functions_a_node: int = 20
    zipf: float = 1.0  # exponent of how many nodes run a function, by its rank
    kinds: tuple[float, ...] = (0.35, 0.30, 0.18, 0.08, 0.05, 0.03, 0.01)
    versions_kept: int = 3  # old versions from which the server prepares updates
    behind: tuple[float, ...] = (0.97, 0.02, 0.005, 0.005)  # 1, 2, 3, more versions behind
    moves: float = 0.02  # of all placements a day: the function comes to a node without it
    empty_nodes: float = 0.005  # of all nodes a day: new, with an empty store
    base_changes: float = 12 / 365  # new base layers a day (certificates, time zones)
    families: int = 50  # groups of functions with the same modules: a first pull has one of its own
    busiest_hour: float = 0.25  # share of a day's deploys
    rollout_seconds: float = 60.0  # in which the nodes of one deploy ask
    server_rate: float = 1e9 / 8 * 0.8  # bytes a second of a server's line, 80 % of 1 Gbit/s
    server_cores: int = 2
    spare: int = 1  # servers more than needed
    seed: int = 1


@dataclass
class Day:
    """What happened; bytes by method as sent by servers and as received by each node."""

    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(METHODS, 0))
    received: dict[str, Int64s] = field(default_factory=dict)
    updates: int = 0
    first_pulls: int = 0
    empty_pulls: int = 0
    prepared: int = 0  # updates for which a delta was there
    made: int = 0  # deltas that somebody waited for
    kept_size: int = 0  # bytes of deltas made that day
    diff_seconds: float = 0.0
    largest: int = 0  # nodes of the largest deploy
    hit: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(ROLES)))
    wanted: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(ROLES)))


def placements(fleet: Fleet) -> Int64s:
    """How many nodes run each function: Zipf over the ranks, at least 1, at most all."""
    weights = 1.0 / np.arange(1, fleet.functions + 1) ** fleet.zipf
    slots = fleet.nodes * min(fleet.functions_a_node, fleet.functions)
    counts = np.ones(fleet.functions, np.int64)
    for _ in range(64):  # what is above the cap goes to the others
        open_ = counts < fleet.nodes
        left = slots - int(counts.sum())
        if left <= 0 or not open_.any():
            break
        share = np.floor(left * weights * open_ / weights[open_].sum()).astype(np.int64)
        if not share.any():
            break
        counts = np.minimum(counts + share, fleet.nodes)
    return counts


def simulate(fleet: Fleet, costs: Costs) -> Day:
    """One day. Every pull is drawn; bytes are added where they are sent and where they arrive."""
    rng = np.random.default_rng(fleet.seed)
    day = Day(received={name: np.zeros(fleet.nodes, np.int64) for name in METHODS})
    moved = {
        "whole layers": np.array(costs.whole),
        "chunks": np.array(costs.chunks),
        "deltas": np.array(costs.deltas),
    }
    counts = placements(fleet)
    day.largest = int(counts.max())
    hits, shares = np.array(costs.hits), np.array(costs.shares)
    first_seen: set[tuple[int, int]] = set()
    for function, count in enumerate(counts.tolist()):
        nodes = rng.choice(fleet.nodes, count, replace=False)
        for _ in range(rng.poisson(fleet.deploys)):
            kind = int(rng.choice(len(KINDS), p=fleet.kinds))
            _deploy(fleet, costs, day, rng, nodes, kind, moved)
            day.hit += hits[kind] * shares * count
            day.wanted += shares * count
        arrivals = nodes[rng.random(count) < fleet.moves]
        _first_pulls(fleet, costs, day, rng, arrivals, function, first_seen)
    _empty_nodes(fleet, costs, day, rng)
    if rng.random() < fleet.base_changes:  # a new base layer, on every node once
        for name in METHODS:
            _send(day, name, np.arange(fleet.nodes), costs.base_layer)
        day.wanted[0] += shares[0] * fleet.nodes
    return day


def _deploy(
    fleet: Fleet,
    costs: Costs,
    day: Day,
    rng: np.random.Generator,
    nodes: Int64s,
    kind: int,
    moved: Mapping[str, Int64s],
) -> None:
    """Every node that runs the function gets the new version; who is further behind gets as many
    edits in one."""
    day.updates += len(nodes)
    behind = 1 + rng.choice(len(fleet.behind), len(nodes), p=fleet.behind)
    kept = behind <= fleet.versions_kept
    day.prepared += int(kept.sum())
    olds = np.unique(behind[~kept]).size
    day.made += olds
    deltas = min(fleet.versions_kept, len(fleet.behind)) + olds
    day.diff_seconds += costs.diff_seconds * deltas
    day.kept_size += int(moved["deltas"][kind]) * deltas
    for name in METHODS:
        sizes = moved[name][kind] * (behind if name != "whole layers" else 1)
        sizes = np.minimum(sizes, moved["whole layers"][kind])  # never more than all of it
        _send(day, name, nodes, sizes)


def _first_pulls(
    fleet: Fleet,
    costs: Costs,
    day: Day,
    rng: np.random.Generator,
    nodes: Int64s,
    function: int,
    seen: set[tuple[int, int]],
) -> None:
    """The function comes to nodes that hold others: from the nearest of them, which is one of its
    family in most cases. A delta between two functions is made when it is first asked for."""
    day.first_pulls += len(nodes)
    near = rng.integers(0, max(1, fleet.functions // fleet.families), len(nodes))
    for one in np.unique(near).tolist():
        if (function, one) not in seen:
            seen.add((function, one))
            day.made += 1
            day.diff_seconds += costs.diff_seconds
            day.kept_size += costs.first_held
    _send(day, "whole layers", nodes, statistics.fmean(costs.whole))
    _send(day, "chunks", nodes, costs.first_held)
    _send(day, "deltas", nodes, costs.first_held)


def _empty_nodes(fleet: Fleet, costs: Costs, day: Day, rng: np.random.Generator) -> None:
    """New nodes pull all that they are to run; the first pull is onto nothing, the others are not
    (layers of whole images are shared by digest: the base layer comes once)."""
    fresh = np.flatnonzero(rng.random(fleet.nodes) < fleet.empty_nodes)
    day.empty_pulls += len(fresh) * fleet.functions_a_node
    others = fleet.functions_a_node - 1
    whole = costs.base_layer + statistics.fmean(costs.whole) * fleet.functions_a_node
    _send(day, "whole layers", fresh, whole)
    for name in METHODS[1:]:
        _send(day, name, fresh, costs.first_empty + costs.first_held * others)


def _send(day: Day, name: str, nodes: Int64s, sizes: Int64s | float) -> None:
    each = np.broadcast_to(np.asarray(sizes, np.int64), nodes.shape)
    day.sent[name] += int(each.sum())
    np.add.at(day.received[name], nodes, each)


def servers_needed(fleet: Fleet, costs: Costs, day: Day, method: str) -> Table:
    """Servers for the busiest moment: the busiest hour's mean and the largest deploy on top, by the
    line, by the requests, and (deltas) by the processors that make them."""
    busy = fleet.busiest_hour / 3600
    mean_pulls = (day.updates + day.first_pulls + day.empty_pulls) * busy
    burst = day.largest / fleet.rollout_seconds
    mean_size = day.sent[method] / max(1, day.updates + day.first_pulls + day.empty_pulls)
    by_line = (day.sent[method] * busy + burst * mean_size) / fleet.server_rate
    by_requests = (mean_pulls + burst) / costs.update_rate
    by_cores = day.diff_seconds * busy / fleet.server_cores if method == "deltas" else 0.0
    need = max(by_line, by_requests, by_cores)
    return {
        "line": by_line,
        "requests": by_requests,
        "cores": by_cores,
        "servers": int(np.ceil(need)) + fleet.spare,
    }


def summary(fleet: Fleet, costs: Costs) -> Table:
    day = simulate(fleet, costs)
    asked = day.updates + day.first_pulls
    hit = {
        role: float(day.hit[at] / day.wanted[at]) if day.wanted[at] else None
        for at, role in enumerate(ROLES)
    }
    return {
        "updates": day.updates,
        "first_pulls": day.first_pulls,
        "empty_pulls": day.empty_pulls,
        "egress": day.sent,
        "servers": {name: servers_needed(fleet, costs, day, name) for name in METHODS},
        "delta_hit": 1 - day.made / asked if asked else 1.0,
        "deltas_made": day.made,
        "kept_size": day.kept_size,
        "diff_seconds": day.diff_seconds,
        "role_hit": hit,
        "busiest_node": {name: int(found.max()) for name, found in day.received.items()},
    }


SENSITIVITY: dict[str, dict[str, Any]] = {
    "as assumed": {},
    "ten deploys a day": {"deploys": 10.0},
    "only strings and log lines": {"kinds": (0.5, 0.5, 0, 0, 0, 0, 0)},
    "half of the deploys change modules": {"kinds": (0.2, 0.2, 0.1, 0.2, 0.2, 0.05, 0.05)},
    "no function is more popular": {"zipf": 0.0},
    "100 functions a node": {"functions_a_node": 100},
    "a fifth of the placements moves": {"moves": 0.2},
    "5 % of the nodes are new each day": {"empty_nodes": 0.05},
    "nodes lag: a fifth skips versions": {"behind": (0.8, 0.1, 0.05, 0.05)},
    "a new base layer that day": {"base_changes": 1.0},
}
