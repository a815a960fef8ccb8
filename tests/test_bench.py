"""docs/benchmarks.md is what bench/report.py makes of the newest results."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "bench"))


def load_report() -> ModuleType:
    return importlib.import_module("report")


def test_benchmarks_page_is_that_of_the_newest_results() -> None:
    report = load_report()
    if report.newest_results() is None:
        pytest.skip("no results yet: run `make bench`")
    assert report.whole_page() == report.PAGE.read_text(encoding="utf-8"), (
        "run: python bench/report.py"
    )


def test_every_goal_belongs_to_a_measured_case() -> None:
    report = load_report()
    newest = report.newest_results()
    if newest is None:
        pytest.skip("no results yet: run `make bench`")
    tables = json.loads(newest.read_text(encoding="utf-8"))["tables"]
    assert set(report.DELTA_GOALS) == set(tables["deltas"]["rows"])


def test_a_missed_goal_is_said_loudly() -> None:
    report = load_report()
    assert report.verdict(351, 350) == "**missed**"
    assert report.verdict(350, 350) == "yes"
    assert report.verdict(14, 15, better_low=False) == "**missed**"


def test_a_failed_check_is_said_loudly() -> None:
    report = load_report()
    row = {"cases": 3, "seconds": 1, "date": "2026-11-25", "failed": 1}
    assert "**1 tests fail**" in report.trust_table({"mutations": row})


# --- the service -----------------------------------------------------------------------------

COSTS = {
    "whole": (1000,) * 7,
    "chunks": (100,) * 7,
    "deltas": (10, 20, 30, 40, 50, 60, 70),
    "base_layer": 500,
    "first_held": 40,
    "first_empty": 1400,
    "diff_seconds": 0.5,
    "update_rate": 100.0,
    "hits": ((1.0, 0.5, 0.0),) * 7,
    "shares": (0.9, 0.08, 0.02),
}


def small_fleet(**changed: object) -> tuple[Any, Any]:
    """A fleet and its day."""
    module = importlib.import_module("fleet")
    fleet = module.Fleet(nodes=50, functions=20, functions_a_node=5, **changed)
    return fleet, module.simulate(fleet, module.Costs(**COSTS))


def test_a_fleet_receives_what_the_servers_send() -> None:
    fleet, day = small_fleet(moves=0.2, empty_nodes=0.1, base_changes=1.0)
    for method, received in day.received.items():
        assert day.sent[method] == int(received.sum()) > 0
    assert day.updates >= fleet.nodes and day.first_pulls > 0 and day.empty_pulls > 0


def test_a_fleet_runs_what_was_assumed_and_is_the_same_each_time() -> None:
    fleet, day = small_fleet()
    counts = importlib.import_module("fleet").placements(fleet)
    assert counts.min() >= 1 and counts.max() <= fleet.nodes
    assert 0.9 * 250 <= counts.sum() <= 250
    assert small_fleet()[1].sent == day.sent


def test_a_fleet_without_moves_sends_one_update_a_deploy_and_node() -> None:
    _, day = small_fleet(moves=0.0, empty_nodes=0.0, base_changes=0.0, behind=(1.0, 0, 0, 0))
    assert day.sent["chunks"] == 100 * day.updates
    assert day.sent["whole layers"] == 1000 * day.updates
    assert (day.made, day.prepared) == (0, day.updates)
    assert day.hit[1] / day.wanted[1] == pytest.approx(0.5)


def test_a_slope_is_found_and_noise_is_none() -> None:
    slopes = importlib.import_module("slopes")
    times = [float(at) for at in range(120)]
    noise = [100.0 + 40 * (at % 5 == 0) for at in range(120)]
    leak = [value + at for value, at in zip(noise, times, strict=True)]
    assert slopes.growth(times, noise) == pytest.approx(0, abs=1)
    assert slopes.growth(times, leak) == pytest.approx(79, abs=8)
    assert not slopes.judge("x, handles", times, leak)["good"]


def test_a_slower_pull_is_said_loudly() -> None:
    service = importlib.import_module("report_service")
    rows = {"docker": [{"seconds": 1.0, "received": 9}], "layerkit": [{"seconds": 0.21}]}
    rows["layerkit"][0]["received"] = 1
    assert "**missed**" in service.latency_table({"changes": {"a": rows}})
    rows["layerkit"][0]["seconds"] = 0.19
    assert "**missed**" not in service.latency_table({"changes": {"a": rows}})


def test_pushes_stand_beside_the_pulls_that_they_make_quick() -> None:
    service = importlib.import_module("report_service")
    rows = {"docker push": [{"seconds": 2.0, "received": 9}]}
    text = service.pushes_table({"pushes": {"base -> x": rows}})
    assert "docker push" in text and "2.0" in text


def test_what_goes_through_registries_is_told_by_registry_and_by_whom() -> None:
    service = importlib.import_module("report_service")
    counts = {"layerkit": {"request_count": 3, "size": 3_692}}
    rows = {"registries": {"one": {"pull, edit": counts}, "two": {"missing": "no two on PATH"}}}
    text = service.registries_table(rows)
    assert "| one | pull, edit | layerkit | 3 | 3,692 |" in text and "no two on PATH" in text


@pytest.mark.slow
def test_a_minute_of_soak_shows_no_leak() -> None:
    argv = [sys.executable, str(ROOT / "bench/soak.py"), "--seconds", "60"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["counts"]["pulls"] > 5


BENCHSTAT = """goos: linux
pkg: example.com/layerkit/go-runtime/warm
,x.txt,
,sec/op,CI
LazyGet-2,1.366e-08,3%
geomean,1.366e-08

,B/op,CI
LazyGet-2,0,0%

,allocs/op,CI
LazyGet-2,0,0%
"""


def test_benchmarks_of_the_go_module_are_read_from_benchstat() -> None:
    functions = importlib.import_module("report_functions")
    found = functions.read_benchstat(BENCHSTAT)
    assert found["warm LazyGet"]["sec/op"] == [1.366e-08, "3%"]
    assert "| warm LazyGet | 14 ns | 3% | 0 | 0 |" in functions.benchmarks_table(found)


def test_a_killed_function_is_told_by_its_limit() -> None:
    functions = importlib.import_module("report_functions")
    killed = {"status": -9, "peak": 7, "events": {"high": 0, "oom_kill": 1}, "printed": {}}
    assert "killed (status -9)" in functions.limit_v2_table({"memory.max": killed})
