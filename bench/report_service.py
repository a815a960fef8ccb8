"""The part of docs/benchmarks.md about the service: latency, lines, load, the fleet. Pure;
report.py puts it into the page.
"""

from __future__ import annotations

import statistics
from typing import Any

from report_tables import grid, number, verdict

Table = dict[str, Any]
LATENCY_GOAL = 1 / 5  # of docker pull's time
SLOWER_GOAL = 1.05  # of the plain pull's time: what two medians differ by
MEMORY_GOAL = 5  # times the binary
IDLE_GOAL = 80e6  # bytes
STEPS = ("push, first", "push, edit", "pull, first", "pull, edit", "pull, edit onto an empty node")
LOAD_GOAL = 0.5  # of nginx
BASE_GOAL, DEPS_GOAL = 0.999, 0.85  # the seed's expectation of hits by role


def middle(samples: list[Table], key: str) -> float:
    return float(statistics.median(sample[key] for sample in samples))


def spread(samples: list[Table]) -> str:
    """Median seconds, and the least and most."""
    seconds = [sample["seconds"] for sample in samples]
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


def latency_table(rows: Table) -> str:
    lines = []
    for change, found in rows["changes"].items():
        docker = middle(found["docker"], "seconds")
        for name, samples in found.items():
            ratio = middle(samples, "seconds") / docker
            judged = name != "docker"
            lines.append(
                [
                    change,
                    name,
                    spread(samples),
                    number(int(middle(samples, "received"))),
                    f"{ratio:.2f}" if judged else "1",
                    verdict(ratio, LATENCY_GOAL) if judged else "",
                ]
            )
    head = ["change", "pulled by", "s, median (least to most)", "bytes on the line", "of docker"]
    return grid([*head, f"<= 1/{1 / LATENCY_GOAL:.0f}"], lines)


def lines_table(rows: Table) -> str:
    lines = []
    for line, found in rows["lines"].items():
        for first in ("", "first, "):
            samples = found["samples"]
            plain, ours = samples[f"{first}plain"], samples[f"{first}layerkit"]
            ratio = middle(ours, "seconds") / middle(plain, "seconds")
            lines.append(
                [
                    line,
                    "first pull" if first else "update",
                    spread(samples["docker"]) if not first else "",
                    spread(plain),
                    spread(ours),
                    number(int(middle(plain, "received"))),
                    number(int(middle(ours, "received"))),
                    f"{ratio:.2f}",
                    verdict(ratio, SLOWER_GOAL),
                ]
            )
    head = ["line", "what", "docker pull, s", "whole layers, s", "layerkit, s", "whole, bytes"]
    return grid([*head, "layerkit, bytes", "of whole layers", f"<= {SLOWER_GOAL}"], lines)


def crossing_text(rows: Table) -> str:
    parts = []
    for what, rate in rows["crossing"].items():
        said = f"at {rate:,.0f} Mbit/s" if rate else "at no rate"
        parts.append(f"{what}: {said}")
    return (
        "Crossing, above which whole layers would be quicker if nothing but these bytes and "
        f"seconds counted: {'; '.join(parts)}."
    )


def load_table(rows: Table) -> str:
    lines = []
    for change, row in rows["changes"].items():
        for way in ("agents", "raw"):
            ours, peer = row[way]["layerkit"], row[way]["nginx"]
            if way == "agents":
                rates = [rows["agents"] / middle(one, "seconds") for one in (ours, peer)]
                failed: int | str = sum(one["failed_count"] for one in ours)
                what = f"{rows['agents']} agents at once"
            else:
                rates = [middle(one, "rate") for one in (ours, peer)]
                failed = "; ".join(one["errors"] for one in ours if one["errors"]) or 0
                what = f"wrk, {rows['agents']} connections"
            ratio = rates[0] / rates[1]
            lines.append(
                [
                    f"{change}, {number(row['update_size'])} bytes",
                    what,
                    f"{rates[0]:,.0f}",
                    f"{rates[1]:,.0f}",
                    f"{ratio:.2f}",
                    verdict(ratio, LOAD_GOAL, better_low=False),
                    str(failed),
                ]
            )
    head = ["update", "asked by", "layerkit, a second", "nginx, a second", "ratio"]
    return grid([*head, f">= {LOAD_GOAL}", "failed"], lines)


def fleet_table(rows: Table) -> str:
    lines = []
    for name, day in rows["days"].items():
        hit = day["role_hit"]
        lines.append(
            [
                name,
                *(
                    f"{day['egress'][method] / 1e9:,.1f} GB, {found['servers']}"
                    for method, found in day["servers"].items()
                ),
                f"{day['delta_hit']:.2%}",
                f"{day['kept_size'] / 1e6:,.0f} MB",
                f"{day['diff_seconds'] / 3600:.1f} h",
                *("" if hit[role] is None else f"{hit[role]:.2%}" for role in hit),
            ]
        )
    methods = [f"{name}: egress, servers" for name in next(iter(rows["days"].values()))["servers"]]
    head = ["a day", *methods, "delta there", "deltas kept", "time to make"]
    return grid([*head, "base held", "deps held", "code held"], lines)


def fleet_text(rows: Table) -> str:
    """The assumptions, and the expectation of the project's first plan."""
    fleet, hit = rows["fleet"], rows["days"]["as assumed"]["role_hit"]
    kinds = ", ".join(
        f"{share:.0%} {kind}" for kind, share in zip(rows["kinds"], fleet["kinds"], strict=True)
    )
    behind = ", ".join(f"{share:.1%}" for share in fleet["behind"])
    return "\n".join(
        [
            f"- {number(fleet['nodes'])} nodes, {number(fleet['functions'])} functions, "
            f"{fleet['functions_a_node']} a node, by Zipf with exponent {fleet['zipf']}; "
            f"{fleet['deploys']} deploys of each a day, the same for popular ones.",
            f"- Deploys: {kinds}; each stands for the measured edit of that kind.",
            f"- Nodes are 1, 2, 3 and more versions behind: {behind}. Updates from "
            f"{fleet['versions_kept']} versions are prepared.",
            f"- {fleet['moves']:.1%} of the placements move a day, {fleet['empty_nodes']:.1%} of "
            f"the nodes are new; {fleet['base_changes'] * 365:.0f} new base layers a year.",
            f"- {fleet['busiest_hour']:.0%} of the day in the busiest hour, and in it the largest "
            f"deploy, all nodes within {fleet['rollout_seconds']:.0f} s; a server has "
            f"{fleet['server_cores']} cores and {fleet['server_rate'] * 8 / 1e9:.1f} Gbit/s, "
            f"answers {rows['costs']['update_rate']:,.0f} updates a second (measured above), and "
            f"{fleet['spare']} more than needed are counted.",
            "- Held: share of an image's bytes, by chunks and their role, that a node has which "
            "runs the old version and other functions of the same Go release. Expected were over "
            f"{BASE_GOAL:.1%} of base ({verdict(hit['base'], BASE_GOAL, better_low=False)}) and "
            f"about {DEPS_GOAL:.0%} of deps ({verdict(hit['deps'], DEPS_GOAL, better_low=False)}): "
            "what base lacks are packages of the standard library that a function links for the "
            "first time.",
        ]
    )


def memory_table(rows: Table) -> str:
    """Peaks of pulls against the binary, and the agent at rest."""
    size = max(rows["binary_sizes"])
    lines = [
        [way, number(peak), f"{peak / size:.1f}", verdict(peak / size, MEMORY_GOAL)]
        for way, peak in rows["peaks"].items()
    ]
    return grid(["pull", "bytes at most", "of the binary", f"< {MEMORY_GOAL}"], lines)


def idle_text(rows: Table) -> str:
    agent = rows["agent"]
    return (
        f"The agent that has pulled it holds {agent['own'] / 1e6:.0f} MB when it is idle again "
        f"(goal {IDLE_GOAL / 1e6:.0f}); it and the process that its jobs fork from, with what they "
        f"share counted once, {agent['all'] / 1e6:.0f} MB."
    )


def _has_kept(rows: Table) -> bool:
    """Was it measured with spare trees, and an agent whose server has the update before?"""
    return any("layerkit agent, update kept" in found for found in rows["changes"].values())


def _ready(rows: Table) -> str:
    return ", which has the files of the lower layers ready" if _has_kept(rows) else ""


def _kept(rows: Table) -> str:
    if not _has_kept(rows):
        return ""
    text = "; *update kept*: at one that has the update before"
    if "pushes" in rows:
        text += (
            "; *pushed*: at one whose layout `layerkit push` publishes the update and then the tag "
            "to, from the move of the tag; *push to agent*: the same from the start of that command"
        )
    return text


def pushes_table(rows: Table) -> str:
    """What a push takes: there the updates are made that pulls get."""
    lines = [
        [change, name, spread(samples), number(int(middle(samples, "received")))]
        for change, found in rows["pushes"].items()
        for name, samples in found.items()
    ]
    return grid(["change", "pushed by", "s, median (least to most)", "bytes on the line"], lines)


def registries_table(rows: Table) -> str:
    """Requests and bytes, by registry, by what was done, by whom."""
    lines = []
    for registry, done in rows["registries"].items():
        if "missing" in done:
            lines.append([registry, str(done["missing"]), "", "", ""])
            continue
        for what, counts in sorted(done.items(), key=lambda pair: STEPS.index(pair[0])):
            for who, found in counts.items():
                lines.append(
                    [registry, what, who, str(found["request_count"]), number(found["size"])]
                )
    return grid(["registry", "what", "by", "requests", "bytes, both ways"], lines)


def sections(tables: Table) -> list[str]:
    """What was measured, in the order of the page; a table that was not is left out."""
    parts: list[str] = []
    if (rows := tables.get("latency")) and "changes" in rows:
        parts += [
            "## From push to program",
            f"A line of {rows['round_trip']} ms and {rows['rate']} Mbit/s between two network "
            f"namespaces ({rows['how']}). Docker is Debian's dockerd 20.10 with Debian's "
            "docker-registry, asked over its API; from the request to the extracted image. "
            f"*layerkit*: a warm node{_ready(rows)}, from the request to the file tree, the update "
            "kept by the server; *at once*: from a server that has made nothing yet; *agent*: from "
            "the move of the tag at such a server to the agent's link `current`"
            f"{_kept(rows)}. In turn, medians.",
            latency_table(rows),
        ]
        if "pushes" in rows:
            parts += [
                "The pushes themselves, over the same line to docker-registry, which has the old "
                "version: layerkit's command starts, makes the update and sends it, the chunk "
                "manifest and the labels beside the image; docker packs the new layer, which "
                "layerkit's build has done before.",
                pushes_table(rows),
            ]
    if (rows := tables.get("registries")) and "registries" in rows:
        parts += [
            "## Through a plain registry",
            f"{rows['change']}, on loopback, nothing of ours between command and registry. skopeo "
            "moves what docker does: layers that the other side lacks. *of skopeo's push*: nothing "
            "lies beside the image. An edit's push sends the layer, its chunk manifest, its labels "
            "and an update; the first one all forms and chunk packs, too.",
            registries_table(rows),
        ]
    if (rows := tables.get("lines")) and "lines" in rows:
        parts += [
            "## Never slower",
            f"{rows['change']} on other lines; *whole layers* is layerkit's own plain pull, from a "
            "server that has nothing but the image. A first pull is onto an empty node.",
            lines_table(rows),
            crossing_text(rows),
        ]
    if (rows := tables.get("load")) and "changes" in rows:
        parts += [
            "## Load",
            f"One server, {rows['workers']} processes on as many cores, which the clients share; "
            "nginx serves the same bytes as a file, in turn. An agent connects, reads, checks the "
            "digest, closes. Peak memory of all processes of the server: "
            f"{number(rows['memory'])} bytes.",
            load_table(rows),
        ]
    if rows := tables.get("memory"):
        parts += [
            "## Memory of a node",
            f"{rows['case']}, binaries of {' and '.join(map(number, rows['binary_sizes']))} bytes. "
            "Each pull in a process of its own, interpreter and libraries included, into a store "
            "and a file tree; *form made again*: by the published labels, after a plain pull.",
            memory_table(rows),
            idle_text(rows),
        ]
    if rows := tables.get("fleet"):
        parts += [
            "## A fleet on paper",
            "Simulated (`bench/fleet.py`) from the sizes and times above; nobody ran it. A row "
            "changes one assumption.",
            fleet_table(rows),
            fleet_text(rows),
        ]
    return parts
