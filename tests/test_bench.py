"""docs/benchmarks.md is what bench/report.py makes of the newest results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def load_report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_report", ROOT / "bench/report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
