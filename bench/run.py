"""Measure, write bench/results/<date>-<machine>.json, and generate docs/benchmarks.md from it.

python bench/run.py                       everything (make bench)
python bench/run.py --tables deltas,speed some tables anew, the others from the newest results
python bench/run.py --quick               deltas against the fast peers, to the terminal only
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fleet_costs
import functions
import latency
import load
import memory
import never_slower
import ours
import peers
import pulls
import registries
import report
import splits
from build import BENCH, EDITS, GO, TOOLS, Built, build_release, build_workload, others
from floor import floor

Table = dict[str, Any]
OPERATIONS = {  # operation -> rounds
    "encode": 5,
    "decode": 9,
    "diff": 5,
    "patch": 9,
    "zstd -19 compress": 3,
    "zstd -19 decompress": 9,
    "sha256": 9,
    "bsdiff4 diff": 3,
    "bsdiff4 patch": 5,
    "hdiffpatch diff": 3,
    "hdiffpatch patch": 5,
}
WANTED = ["base", "f2", "d_zerolog_1.35.1", "c2_template"]  # first pulls


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def edits() -> dict[str, tuple[Built, Built]]:
    return {name: (build_workload(a), build_workload(b)) for name, (a, b) in EDITS.items()}


def deltas(names: list[str]) -> Table:
    """Bytes of an update by each method."""
    table: Table = {}
    for case, (old, new) in edits().items():
        row: Table = {}
        row["layerkit"] = {"size": len(ours.delta_of([ours.form_of(old)], ours.form_of(new)))}
        for name in names:
            row[name] = peers.measure(name, old.binary, new.binary)
        table[case] = row
        say(f"{case}: {row['layerkit']['size']}")
    return table


def chunks() -> Table:
    table: Table = {}
    for case, (old, new) in edits().items():
        table[case] = ours.chunks_moved([ours.form_of(old)], ours.form_of(new))
        table[case]["averages"] = {
            str(average): ours.chunks_moved_at([ours.form_of(old)], ours.form_of(new), average)
            for average in (512, 1024, 2048, 4096)
        }
        say(f"chunks {case}: {table[case]}")
    return table


def first_pulls() -> Table:
    """A node that holds nothing, and one that holds all the other functions."""
    held = {name: ours.form_of(build_workload(name)) for name in others()}
    product = pulls.measure(WANTED, sorted(held))
    table: Table = {"held": sorted(held), "pulls": {}}
    for name in WANTED:
        built = build_workload(name)
        form = ours.form_of(built)
        manifests = {one: ours.chunk_manifest(old) for one, old in held.items()}
        wanted = {chunk.id for chunk in ours.chunk_manifest(form).chunks}
        shared = sorted(
            held, key=lambda one: (-len(wanted & {c.id for c in manifests[one].chunks}), one)
        )
        olds = [held[shared[0]], *(old for one, old in held.items() if one != shared[0])]
        table["pulls"][name] = {
            "whole_zstd": ours.zstd19(built.binary),
            "whole_lzma": ours.xz(built.binary),
            "form_zstd": ours.zstd19(form),
            "form_lzma": ours.xz(form),
            "form_packed": ours.packed(form),
            "held_chunks": ours.chunks_moved(olds, form),
            "product": product[name],
        }
        say(f"first pull {name}: {table['pulls'][name]}")
    return table


def speeds() -> Table:
    """Side by side in one run, each operation in its own process, one core."""
    old, new = edits()["base -> c1_base64"]
    table: Table = {"case": "base -> c1_base64", "binary_size": len(new.binary), "operations": {}}
    with tempfile.TemporaryDirectory() as name:
        parts = [old.binary, new.binary, ours.form_of(old), ours.form_of(new), new.named]
        paths = [Path(name) / str(index) for index in range(len(parts))]
        for path, data in zip(paths, parts, strict=True):
            path.write_bytes(data)
        core = min(os.sched_getaffinity(0))
        for operation, rounds in OPERATIONS.items():
            argv = [sys.executable, str(BENCH / "speed.py"), operation, str(rounds)]
            done = subprocess.run(
                ["taskset", "-c", str(core), *argv, *map(str, paths)],
                check=True,
                capture_output=True,
                env=os.environ | {"PYTHONPATH": str(BENCH.parent)},
            )
            table["operations"][operation] = json.loads(done.stdout)
            say(f"{operation}: {table['operations'][operation]}")
    return table


def floors() -> Table:
    """Functions that differ only by an unstable id: built with names, and stripped."""
    table: Table = {}
    for case, (old, new) in {**edits(), **releases_built()}.items():
        table[case] = {
            way: floor((old, form(old)), (new, form(new)))
            for way, form in (("built", ours.form_of), ("stripped", ours.bare_form_of))
        }
        say(f"floor {case}: {table[case]}")
    return table


def machines() -> Table:
    """Bytes of a delta on both machines."""
    table: Table = {}
    for case, names in EDITS.items():
        table[case] = {}
        for arch in ("amd64", "arm64"):
            old, new = (ours.form_of(build_workload(name, arch)) for name in names)
            table[case][arch] = len(ours.delta_of([old], new))
        say(f"{case}: {table[case]}")
    return table


def releases_built() -> dict[str, tuple[Built, Built]]:
    return {
        f"{name} {old} -> {new}": (
            build_release(module, package, old),
            build_release(module, package, new),
        )
        for name, (module, package, old, new) in TOOLS.items()
    }


def releases() -> Table:
    table: Table = {}
    for case, (old, new) in releases_built().items():
        row: Table = {
            "old_size": len(old.binary),
            "layerkit": {"size": len(ours.delta_of([ours.form_of(old)], ours.form_of(new)))},
            "layerkit, stripped": {
                "size": len(ours.delta_of([ours.bare_form_of(old)], ours.bare_form_of(new)))
            },
        }
        for name in ("whole, zstd -19", *peers.RELEASE):
            row[name] = peers.measure(name, old.binary, new.binary)
        table[case] = row
        say(f"{case}: {row}")
    return table


def rebuild() -> Table:
    argv = [sys.executable, str(BENCH / "rebuild.py"), "9"]
    environment = os.environ | {"PYTHONPATH": str(BENCH.parent), "GOTOOLCHAIN": GO}
    done = subprocess.run(argv, check=True, capture_output=True, env=environment)
    found: Table = json.loads(done.stdout)
    return found


TABLES: dict[str, Callable[[], Table]] = {
    "deltas": lambda: deltas(list(peers.PEERS)),
    "machines": machines,
    "chunks": chunks,
    "first_pulls": first_pulls,
    "speeds": speeds,
    "floors": floors,
    "releases": releases,
    "rebuild": rebuild,
    "latency": latency.measure,
    "lines": never_slower.measure,
    "load": load.measure,
    "memory": memory.measure,
    "split": splits.measure,
    "functions": functions.measure,
    "registries": registries.measure,
}


def machine() -> str:
    """A short description; never a name."""
    system = platform.freedesktop_os_release() if sys.platform == "linux" else {}
    name = f"{system.get('ID', sys.platform).capitalize()} {system.get('VERSION_ID', '')}".strip()
    return f"{len(os.sched_getaffinity(0))} cores, {name}"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "go": GO}
    for name in ("bsdiff4", "hdiffpatch", "numpy", "pyfastcdc", "zstandard"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    for name, argv in (
        ("xdelta3", ["xdelta3", "-V"]),
        ("ostree", ["ostree", "--version"]),
        ("casync", ["casync", "--version"]),
    ):
        if shutil.which(name):
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            words = (done.stdout + done.stderr).replace("'", " ").split()
            found[name] = next((w.rstrip(",") for w in words if w[:1].isdigit()), "present")
        else:
            found[name] = "missing"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="deltas, fast peers, terminal only")
    every = ",".join([*TABLES, "fleet"])  # the fleet is made from the others
    parser.add_argument("--tables", default=every, help="which tables to measure anew")
    options = parser.parse_args()
    ours.forget_old_versions()
    if options.quick:
        print(report.deltas_table(deltas(peers.QUICK)))
        return
    newest = report.newest_results()
    document: Table = json.loads(newest.read_text()) if newest else {}
    today = datetime.date.today().isoformat()
    document |= {"machine": machine(), "versions": versions(), "date": today}
    document.setdefault("tables", {})
    target = (
        report.RESULTS / f"{today}-{machine().lower().replace(', ', '-').replace(' ', '-')}.json"
    )
    for name in options.tables.split(","):
        say(f"== {name}")
        made = fleet_costs.measure(document["tables"]) if name == "fleet" else TABLES[name]()
        document["tables"][name] = {"measured": today, "rows": made}
        target.write_text(json.dumps(document, indent=1) + "\n")
    report.main()
    say(f"written: {report.PAGE.name}, {target.name}")


if __name__ == "__main__":
    main()
