"""The part of docs/benchmarks.md about the Go module of functions. Pure; report.py puts it in."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from report_tables import grid, number, verdict

Table = dict[str, Any]
WARM_GOAL = 1.2  # the first request after a probe against the hundredth
PAUSE_GOAL = 1.8e-3  # seconds
TUNER_GOAL = 1.05  # of the best static GOGC
PORTRAIT_GOAL = 0.97  # of the throughput without


def ms(seconds: float, digits: int = 2) -> str:
    return f"{1000 * seconds:.{digits}f} ms"


def start_table(rows: Table) -> str:
    bare = statistics.median(rows["bare net/http"]["exec"])
    lines = []
    for name, found in rows.items():
        exec_, first = (statistics.median(found[key]) for key in ("exec", "first"))
        lines.append([name, ms(exec_), f"{exec_ / bare:.2f}", ms(first)])
    head = ["function", "exec to the first answered byte", "of bare", "the first request itself"]
    return grid(head, lines)


def tls_table(rows: Table) -> str:
    lines = [
        [name, *(ms(statistics.median(found[key])) for key in ("exec", "handshake", "first"))]
        for name, found in rows.items()
    ]
    head = ["certificate and roots", "exec to the first answered byte", "handshake"]
    return grid([*head, "first request, which checks against the roots"], lines)


def warm_table(rows: Table) -> str:
    lines = []
    for name, found in rows.items():
        first, hundredth = (statistics.median(found[key]) for key in ("first", "hundredth"))
        path, _, way = name.partition(" ")
        judged = verdict(first / hundredth, WARM_GOAL) if "probe" in way else ""
        ratio = f"{first / hundredth:.2f}"
        lines.append([path, way, ms(first, 3), ms(hundredth, 3), ratio, judged])
    head = ["request", "function", "first", "hundredth", "ratio", f"<= {WARM_GOAL}"]
    return grid(head, lines)


def limit_table(rows: Table) -> str:
    lines = []
    for name, found in rows.items():
        if found["status"]:
            ended = f"killed (status {found['status']})"
            lines.append([name, ended, number(found["counted"]), "", "", "", "", "**missed**"])
            continue
        lines.append(
            [
                name,
                "served all",
                number(found["counted"]),
                number(found["live"]),
                ms(found["pause_p99"]),
                ms(found["p99"], 1),
                f"{found['gc_cpu']:.1f} s",
                verdict(found["pause_p99"], PAUSE_GOAL),
            ]
        )
    head = ["function", "ended", "bytes counted, peak", "alive", "GC pause, p99"]
    return grid([*head, "request, p99", "CPU of GC", f"pause <= {ms(PAUSE_GOAL, 1)}"], lines)


def limit_v2_table(rows: Table) -> str:
    if "missing" in rows:
        return f"Not measured: {rows['missing']}."
    lines = []
    for name, found in rows.items():
        events, printed = found["events"], found["printed"]
        status = f"killed (status {found['status']})" if found["status"] else "served"
        lines.append(
            [
                name,
                status,
                number(found["peak"]),
                number(events["high"]),
                number(events["oom_kill"]),
                number(printed["limit"]) if printed and printed["limit"] < 1 << 62 else "none",
            ]
        )
    head = ["limit, function", "ended", "bytes counted, peak", "slowed down by memory.high"]
    return grid([*head, "OOM kills", "Go's memory limit"], lines)


def tuner_table(rows: Table) -> str:
    lines = []
    for pattern, found in rows.items():
        fixed = [one for name, one in found.items() if name != "layerkit" and not one["status"]]
        best_cpu = min((one["gc_cpu"] for one in fixed), default=0.0)
        best_p99 = min((one["p99"] for one in fixed), default=0.0)
        for name, one in found.items():
            if one["status"]:
                lines.append([pattern, name, "killed", "", number(one["counted"]), "", ""])
                continue
            is_ours = name == "layerkit"
            cpu, p99 = one["gc_cpu"], one["p99"]
            lines.append(
                [
                    pattern,
                    name,
                    f"{cpu:.2f} s",
                    ms(p99),
                    number(one["counted"]),
                    verdict(cpu / best_cpu, TUNER_GOAL) if is_ours and best_cpu else "",
                    verdict(p99 / best_p99, TUNER_GOAL) if is_ours and best_p99 else "",
                ]
            )
    head = ["heap", "GOGC by", "CPU of GC", "request, p99", "bytes counted, peak"]
    return grid([*head, "CPU within 5 % of the best", "p99 within 5 %"], lines)


def pages_table(rows: Table) -> str:
    heap = statistics.median(rows["Go's heap"]["ns"])
    lines = [
        [name, one["backing"], f"{statistics.median(one['ns']):.0f} ns", f"{ratio:.2f}"]
        for name, one in rows.items()
        if (ratio := statistics.median(one["ns"]) / heap)
    ]
    return grid(["table of 1 GB", "pages", "a random read", "of the heap's"], lines)


def read_benchstat(text: str) -> Table:
    """By `package Benchmark`, what benchstat's CSV says: unit -> [value, spread]."""
    found: Table = {}
    package = unit = ""
    for line in text.splitlines():
        cells = line.split(",")
        if line.startswith("pkg: "):
            package = line.rpartition("/")[2]
        elif len(cells) >= 3 and cells[0] == "" and cells[1] and cells[2] == "CI":
            unit = cells[1]
        elif len(cells) >= 3 and cells[0] not in ("", "geomean") and unit:
            name = f"{package} {cells[0].partition('-')[0]}"
            found.setdefault(name, {})[unit] = [float(cells[1]), cells[2]]
    return found


def benchmarks_table(rows: Table) -> str:
    if "missing" in rows:
        return f"Not measured: {rows['missing']}."
    lines = []
    for name, units in rows.items():
        seconds, spread = units["sec/op"]
        cells = [f"{units[unit][0]:.0f}" for unit in ("B/op", "allocs/op")]
        lines.append([name, f"{seconds * 1e9:,.0f} ns", spread, *cells])
    return grid(["benchmark", "an operation", "spread", "bytes", "allocations"], lines)


def portrait_table(rows: Table) -> str:
    if "missing" in rows:
        return f"Not measured: {rows['missing']}."
    bare, watched = (statistics.median(rows[key]) for key in ("bare", "watched"))
    ratio = watched / bare
    reached = "yes" if ratio >= PORTRAIT_GOAL else "**missed**"
    lines = [
        ["bare", f"{bare:,.0f}", "1", ""],
        ["portrait and breaker", f"{watched:,.0f}", f"{ratio:.3f}", reached],
    ]
    return grid(["hello handler", "requests a second", "ratio", f">= {PORTRAIT_GOAL}"], lines)


OLD_WARM_TEXT = "After a start, on one connection; a probe at /warmz came first where it says so."
WARM_TEXT = (
    "After a start, on one connection that is kept; a probe at /warmz came first where it says"
    " so. At a pace each request finds the function idle, as the first does; back to back the"
    " hundredth finds threads of both sides still spinning:"
)
LIMIT_V2_TEXT = (
    "The same at an eighth of the scale under cgroup v2, in an emulated machine; what it shows is"
    " behaviour, its times mean nothing:"
)


def _if(rows: Table, name: str, text: str, table: Callable[[Table], str]) -> list[str]:
    """A table with its text, where it was measured."""
    return [text, table(rows[name])] if name in rows else []


def section(rows: Table) -> list[str]:
    """All tables of the module, each with what it is of."""
    return [
        "## The Go module of functions",
        "The same handlers, in turn; *bare* is net/http with Go's defaults.",
        start_table(rows["start"]),
        *_if(rows, "tls", "By TLS, which the same function serves:", tls_table),
        WARM_TEXT if "tls" in rows else OLD_WARM_TEXT,
        warm_table(rows["warm"]),
        "2.5 GB alive, 1,000 requests a second of 64 KB garbage each, in a cgroup (v1) of 3.2 GB:",
        limit_table(rows["limit"]),
        *_if(rows, "limit_v2", LIMIT_V2_TEXT, limit_v2_table),
        "Functions of 512 MiB under a fixed load; what GOGC may cost is memory that is free,"
        " so peak memory is shown and not judged:",
        tuner_table(rows["tuner"]),
        "Each read waits for the one before:",
        pages_table(rows["pages"]),
        "By wrk with 32 connections, which shares the cores:",
        portrait_table(rows["portrait"]),
        *_if(rows, "benchmarks", "The module's own benchmarks, by benchstat:", benchmarks_table),
    ]
