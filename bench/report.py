"""docs/benchmarks.md from the newest results. Pure but for reading and writing those two files.

python bench/report.py        (bench/run.py calls it, too)
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import report_functions
import report_service
import report_split
from report_tables import grid, number, verdict

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
Table = dict[str, Any]

# Issue 4's numbers: what the sketch reached, and what is asked for
DELTA_GOALS = {
    "base -> a_literal": (725, 350),
    "base -> b_logline": (1480, 900),
    "base -> c1_base64": (4398, 2500),
    "base -> c2_template": (674408, 550000),
    "zerolog 1.33.0 -> 1.34.0": (654, None),  # not worse than the best differ
    "zerolog 1.34.0 -> 1.35.1": (15974, 10000),
    "base -> f2": (185351, 150000),
}
CHUNK_GOALS = {"base -> a_literal": 15000, "base -> c1_base64": 60000}
FIRST_GOAL, HELD_GOAL = 0.88, 0.05
ENCODE_GOAL, DECODE_GOAL = 15, 120  # MB/s
ENCODE_MEMORY, DECODE_MEMORY = 10, 5  # times the binary
DIFF_GOAL = 0.3  # s for 6 MB
FLOOR_BUILT, FLOOR_STRIPPED = 0.0005, 0.002
RELEASE_MEDIAN, RELEASE_WORST = 1 / 20, 1 / 8
REBUILD_GOAL = 1.15
ARM_RATIO = 1.5
RELEASE_PEERS = ("bsdiff4", "hdiffpatch", "ostree static-delta")


def newest_results() -> Path | None:
    """The newest <date>-<machine>.json; other documents do not start with a digit."""
    found = sorted(RESULTS.glob("[0-9]*.json"))
    return found[-1] if found else None


def moved(cell: Table) -> str:
    return number(cell["size"]) if "size" in cell else "missing"


def best_peer(row: Table, names: list[str]) -> tuple[str, int]:
    sizes = [(row[name]["size"], name) for name in names if "size" in row.get(name, {})]
    size, name = min(sizes)
    return name, size


def deltas_table(rows: Table) -> str:
    """Methods down, cases across: as in the table of peers that the issue starts from."""
    cases = list(rows)
    names = [name for name in next(iter(rows.values())) if name != "layerkit"]
    names.sort(key=lambda name: -rows[cases[0]][name].get("size", 1 << 40))
    lines = [[name, *(moved(rows[case][name]) for case in cases)] for name in names]
    lines.append(
        ["**layerkit delta**", *(f"**{moved(rows[case]['layerkit'])}**" for case in cases)]
    )
    sketch = [number(DELTA_GOALS[case][0]) for case in cases]
    lines.append(["the sketch", *sketch])
    goals, verdicts, ratios = [], [], []
    for case in cases:
        best = best_peer(rows[case], names)[1]
        goal = DELTA_GOALS[case][1]
        size = rows[case]["layerkit"]["size"]
        goals.append(number(best if goal is None else goal))
        verdicts.append(verdict(size, best if goal is None else goal))
        ratios.append(f"1/{best / size:.1f}" if size <= best else f"{size / best:.2f}")
    lines += [["goal", *goals], ["reached", *verdicts], ["of the best peer", *ratios]]
    return grid(["bytes", *cases], lines)


def missing_notes(rows: Table) -> str:
    notes = {
        f"- {name}: {cell['missing']}"
        for row in rows.values()
        for name, cell in row.items()
        if isinstance(cell, dict) and "missing" in cell
    }
    return "\n".join(["Missing:", *sorted(notes)]) if notes else ""


def times_table(rows: Table) -> str:
    """Seconds that peers took in one case; one sample, for the order of magnitude."""
    row = rows["zerolog 1.34.0 -> 1.35.1"]
    lines = [
        [name, f"{cell['make_s']:.2f}", f"{cell['apply_s']:.3f}" if cell["apply_s"] else ""]
        for name, cell in row.items()
        if "make_s" in cell
    ]
    return grid(["zerolog 1.34.0 -> 1.35.1", "make, s", "apply, s"], lines)


def chunks_table(rows: Table, delta_rows: Table) -> str:
    lines = []
    for case, row in rows.items():
        total = row["manifest"] + row["chunks"]
        goal = CHUNK_GOALS.get(case)
        casync = delta_rows.get(case, {}).get("casync 8K", {})
        lines.append(
            [
                case,
                f"{row['missing_count']} of {row['count']}",
                number(row["own_frame"]) if "own_frame" in row else "",
                number(row["chunks"]),
                number(row["manifest"]),
                f"**{number(total)}**",
                moved(casync),
                number(goal) if goal else "",
                verdict(total, goal),
            ]
        )
    head = ["case", "chunks missing", "alone", "as they travel", "manifest change", "moved"]
    return grid([*head, "casync 8K", "goal", "reached"], lines)


def machines_table(rows: Table) -> str:
    lines = []
    for case, row in rows.items():
        ratio = row["arm64"] / row["amd64"]
        cells = [case, number(row["amd64"]), number(row["arm64"]), f"{ratio:.2f}"]
        lines.append([*cells, verdict(ratio, ARM_RATIO)])
    return grid(["delta, bytes", "amd64", "arm64", "ratio", f"<= {ARM_RATIO}"], lines)


def averages_table(rows: Table) -> str:
    """What other average chunk sizes would move."""
    sizes = list(next(iter(rows.values())).get("averages", {}))
    if not sizes:
        return ""
    lines = [
        [case, *(number(row["averages"][size]) for size in sizes), number(CHUNK_GOALS[case])]
        for case, row in rows.items()
        if case in CHUNK_GOALS
    ]
    return grid(["average, bytes", *sizes, "goal"], lines)


def first_table(rows: Table) -> str:
    lines = []
    for name, row in rows["pulls"].items():
        if "product" not in row:
            continue  # results from before the product's pulls were measured
        ratio = row["form_packed"] / row["whole_zstd"]
        unpack, empty = row["product"]["unpack"], row["product"]["empty"]
        lines.append(
            [
                name,
                number(row["whole_zstd"]),
                number(row["whole_lzma"]),
                f"{number(row['form_zstd'])} ({row['form_zstd'] / row['whole_zstd']:.3f})",
                number(row["form_packed"]),
                f"**{ratio:.3f}**",
                f"{unpack['unpack'] * 1000:.0f} + {unpack['decode'] * 1000:.0f} ms",
                f"{number(empty['moved_size'])} in {empty['request_count']}",
                verdict(ratio, FIRST_GOAL),
            ]
        )
    head = ["function", "whole zstd -19", "whole LZMA2", "form zstd -19", "packed form", "ratio"]
    return grid([*head, "unpack + decode", "the whole pull, requests", f"<= {FIRST_GOAL}"], lines)


def held_table(rows: Table) -> str:
    lines = []
    for name, row in rows["pulls"].items():
        if "product" not in row:
            continue  # results from before the product's pulls were measured
        chunks = row["held_chunks"]["chunks"] + row["held_chunks"]["manifest"]
        moved = row["product"]["held"]
        size = moved["moved_size"] + moved["named_size"]
        ratio = size / row["whole_zstd"]
        lines.append(
            [
                name,
                f"{row['held_chunks']['missing_count']} of {row['held_chunks']['count']}",
                f"{number(chunks)} ({chunks / row['whole_zstd']:.3f})",
                f"{number(size)}",
                str(moved["request_count"]),
                f"{moved['seconds']:.2f} s, {moved['kept_seconds']:.2f} s",
                f"**{ratio:.3f}**",
                verdict(ratio, HELD_GOAL),
            ]
        )
    head = ["function", "chunks missing", "chunks and manifest", "pull: bytes", "requests"]
    return grid([*head, "first, delta kept", "ratio", f"<= {HELD_GOAL}"], lines)


def speeds_table(rows: Table) -> str:
    size, lines = rows["binary_size"], []
    goals = {
        "encode": (ENCODE_GOAL, ENCODE_MEMORY),
        "decode": (DECODE_GOAL, DECODE_MEMORY),
        "diff": (round(size / 1e6 / DIFF_GOAL), None),
    }
    seconds = {name: statistics.median(row["seconds"]) for name, row in rows["operations"].items()}
    for name, row in rows["operations"].items():
        rate, memory = size / 1e6 / seconds[name], row["memory"] / size
        goal, bound = goals.get(name, (None, None))
        reached = [verdict(rate, goal, better_low=False), verdict(memory, bound)]
        against = {"diff": "hdiffpatch diff", "patch": "hdiffpatch patch"}.get(name)
        against = against or {"encode": "zstd -19 compress", "decode": "zstd -19 decompress"}.get(
            name
        )
        lines.append(
            [
                name,
                f"{seconds[name]:.3f}",
                f"{rate:,.1f}",
                f"{seconds[name] / seconds[against]:.2f} x {against}" if against else "",
                str(goal or ""),
                reached[0],
                f"{memory:.1f}",
                str(bound or ""),
                reached[1],
            ]
        )
    head = ["operation", "s", "MB/s", "time against", "goal", "reached"]
    return grid([*head, "peak memory, binaries", "at most", "reached"], lines)


def floors_table(rows: Table) -> str:
    lines = []
    for case, row in rows.items():
        cells = [case, number(row["built"]["functions"])]
        for way, goal in (("built", FLOOR_BUILT), ("stripped", FLOOR_STRIPPED)):
            share = row[way]["by_id"] / row[way]["functions"]
            cells += [
                str(row[way]["differ"]),
                str(row[way]["other_target"]),
                str(row[way]["by_id"]),
                f"{share:.3%}",
                verdict(share, goal),
            ]
        lines.append(cells)
    columns = ["name another thing", "by id alone", "share"]
    head = ["case", "functions", "differ", *columns, f"<= {FLOOR_BUILT:.2%}"]
    stripped = ["stripped: differ", *columns, f"<= {FLOOR_STRIPPED:.1%}"]
    return grid([*head, *stripped], lines)


def releases_table(rows: Table) -> str:
    lines, ratios = [], []
    for case, row in rows.items():
        name, best = best_peer(row, list(RELEASE_PEERS))
        size, bare = row["layerkit"]["size"], row["layerkit, stripped"]["size"]
        ratios.append(size / best)
        lines.append(
            [
                case,
                number(row["old_size"]),
                moved(row["whole, zstd -19"]),
                *(moved(row[peer]) for peer in RELEASE_PEERS),
                f"**{number(size)}**",
                f"1/{best / size:.1f} of {name}",
                verdict(size / best, RELEASE_WORST),
                f"{number(bare)} (1/{best / bare:.1f})",
            ]
        )
    middle = statistics.median(ratios)
    head = ["release", "binary", "whole zstd -19", *RELEASE_PEERS, "layerkit delta", "of the best"]
    text = grid([*head, "<= 1/8", "without names"], lines)
    return (
        f"{text}\n\nMedian of {len(ratios)}: 1/{1 / middle:.1f} (goal 1/20: "
        f"{verdict(middle, RELEASE_MEDIAN)}); worst 1/{1 / max(ratios):.1f} (goal 1/8: "
        f"{verdict(max(ratios), RELEASE_WORST)})."
    )


def rebuild_table(row: Table) -> str:
    bare, whole = statistics.median(row["seconds"]["bare"]), row["whole_ratio"]
    lines = [
        ["bare `go build`", f"{bare:.3f}", "1", "", ""],
        [
            "layerkit, until it has the binary",
            f"{bare * row['go_ratio']:.3f}",
            f"{row['go_ratio']:.3f}",
            str(REBUILD_GOAL),
            verdict(row["go_ratio"], REBUILD_GOAL),
        ],
        ["layers, forms, chunks, layout", f"{row['packing_seconds']:.3f}", "", "", ""],
        ["`layerkit build`, whole", f"{bare * whole:.3f}", f"{whole:.3f}", "", ""],
    ]
    return grid(["rebuild after a one-line edit", "s", "ratio", "goal", "reached"], lines)


def read_json(name: str) -> Table:
    """A results file that the tests write; empty before they ever ran."""
    path = RESULTS / name
    found: Table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def trust_table(rows: Table) -> str:
    """What `make slow` checked: cases that came back, and in which way."""
    lines = []
    for name, row in sorted(rows.items()):
        said = {"failed": "**{} tests fail**", "xfailed": "{} tests wait for a fix"}
        said |= {"skipped": "{} tests skipped"}
        verdicts = [text.format(row[what]) for what, text in said.items() if row.get(what)]
        lines.append(
            [
                name,
                number(row["cases"]),
                number(row["forms"]) if "forms" in row else "",
                number(row["raw"]) if "raw" in row else "",
                ", ".join(verdicts) or "all right",
                number(row["seconds"]),
                row["date"],
            ]
        )
    head = ["checked", "cases", "in a form", "left raw", "result", "s", "date"]
    return grid(head, lines)


def fuzz_table(targets: Table) -> str:
    """All runs of tests/fuzz/run_atheris.py, a line a target."""
    lines, total = [], 0
    for name, runs in sorted(targets.items()):
        seconds = sum(run["seconds"] for run in runs)
        total += seconds
        lines.append(
            [
                name,
                number(seconds),
                number(sum(run["executions"] for run in runs)),
                number(runs[-1]["features"]),
                number(sum(run["findings"] for run in runs)),
                runs[-1]["date"],
            ]
        )
    head = ["target", "s", "executions", "features", "findings", "last run"]
    return f"{grid(head, lines)}\n\n{total / 3600:.1f} hours in all."


def page(document: Table, trust: Table, fuzz: Table) -> str:
    """The whole page; a table that was never measured is left out."""
    tables = {name: table["rows"] for name, table in document["tables"].items()}
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    parts = [
        "# Benchmarks",
        "Written by `make bench` (`bench/run.py`) from `bench/results/`; do not edit. "
        f"Last run {document['date']} on {document['machine']}. Versions: {versions}. "
        "All binaries are linux/amd64, built with `CGO_ENABLED=0 -trimpath -buildvcs=false "
        "-ldflags='-s -w -buildid='`; the workloads are in bench/workloads. Sizes are exact: the "
        "bytes that travel, with each tool's own metadata. Speeds are MB of binary a second on one "
        "core, all in one run; the machine is shared, so the ratios say more. Rows that layerkit "
        "loses stay in. A goal is that of the project's own plan.",
    ]
    if rows := tables.get("deltas"):
        parts += ["## Updates: one delta", deltas_table(rows), missing_notes(rows)]
        parts += ["What the tools took, one sample, with their own start-up:", times_table(rows)]
    if rows := tables.get("machines"):
        parts += ["## Updates on arm64", machines_table(rows)]
    if rows := tables.get("chunks"):
        parts += [
            "## Updates: chunks only",
            "Request and answer of both steps: the change of the chunk manifest, then the missing "
            "chunks as one zstd -19 frame, with what the old form has at their places as "
            "dictionary (*alone*: without it).",
            chunks_table(rows, tables.get("deltas", {})),
            "Other averages (quarter and eightfold as limits), chunks alone, the manifest change "
            "as a delta with all new ids included:",
            averages_table(rows),
        ]
    if rows := tables.get("first_pulls"):
        count = len(rows["held"])
        parts += [
            "## First pulls",
            "Nothing on the node; ratio and goal are of the packed form against the whole binary "
            "by zstd -19. The whole pull is the product's, with the base layer and all documents: "
            "a node takes the packed form unless it has seen that its line is so fast that the "
            "unpacked one is quicker.",
            first_table(rows),
            f"The node holds {count} other functions of the same Go release "
            f"({', '.join(rows['held'])}); in brackets the share of the whole by zstd -19. The "
            "pull is the product's, by a server and a node: documents and the names of what is "
            "held included. A node that holds nothing of the repository waits up to five seconds "
            "for the delta; where that is not made by then, chunks come first:",
            held_table(rows),
        ]
    if rows := tables.get("releases"):
        parts += ["## Releases of public tools", releases_table(rows)]
    if rows := tables.get("floors"):
        parts += [
            "## Unstable ids",
            "Functions whose form no function of the old binary has. Of those with the code of "
            "the old function of the same name, fields of references masked, some *name another "
            "thing*: a function of another name, an object of another symbol or other content, so "
            "they did change. The rest differs *by id alone*.",
            floors_table(rows),
        ]
    if rows := tables.get("speeds"):
        parts += [
            "## Speed and memory",
            f"{rows['case']}, a binary of {number(rows['binary_size'])} bytes; processor time "
            "of a warm process, median of several. Encode decodes and compares; decode hashes; "
            "patch checks all its digests. Memory is the peak over the process with its libraries, "
            "before it read its files.",
            speeds_table(rows),
        ]
    if rows := tables.get("rebuild"):
        parts += ["## Rebuilding", rebuild_table(rows)]
    if rows := tables.get("split"):
        parts += report_split.section(rows)
    if rows := tables.get("functions"):
        parts += report_functions.section(rows)
    parts += report_service.sections(tables)
    if trust:
        parts += [
            "## Trust",
            "What `make slow` checked last (`tests/trust.py` writes it); `make test` runs a quick "
            "part of each. Every case is encoded, decoded and compared: a form of its own or raw, "
            "never other bytes, never an exception but the format error.",
            trust_table(trust),
        ]
    if fuzz:
        parts += [
            "Fuzzed by coverage (`tests/fuzz/run_atheris.py`), with memory limited:",
            fuzz_table(fuzz),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def whole_page() -> str:
    """The page of the newest results, the slow tests' and the fuzzer's included."""
    newest = newest_results()
    if newest is None:
        raise SystemExit("no results: run bench/run.py")
    document = json.loads(newest.read_text(encoding="utf-8"))
    return page(document, read_json("trust.json"), read_json("fuzz.json"))


def main() -> None:
    PAGE.write_text(whole_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
