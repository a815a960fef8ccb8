"""A pytest plugin: what the slow tests checked, for the table "Trust" of docs/benchmarks.md.

A slow test with `@pytest.mark.trust("row")` counts for a row: one case, or as many as it says
through the fixture `trust_cases`. A session with `-m slow` writes the rows that it ran into
bench/results/trust.json, and the page anew.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

__all__ = ["TrustCases", "trust_cases"]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "trust.json"
PROPERTY = "trust"


class TrustCases:
    """What one test counted: cases, and how many of them have a form of their own or are raw."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts = counts

    def add(self, kind: str = "cases", number: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + number

    def encoded(self, why_raw: str) -> None:
        """One case that was encoded and came back."""
        self.add()
        self.add("raw" if why_raw else "forms")


@pytest.fixture
def trust_cases(request: pytest.FixtureRequest) -> TrustCases:
    """Counts for the row of the test's mark; a test without one (a quick half) counts for none."""
    held = dict(request.node.user_properties).get(PROPERTY, {"counts": {}})
    return TrustCases(held["counts"])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "trust(row): a slow test that counts for a row of Trust")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("trust")
        if mark is not None and item.get_closest_marker("slow") is not None:
            item.user_properties.append((PROPERTY, {"row": mark.args[0], "counts": {}}))


_rows: dict[str, Counter[str]] = {}
_seconds: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the controlling process, also for what workers ran."""
    held: Any = dict(report.user_properties).get(PROPERTY)
    if held is None:
        return
    _seconds[held["row"]] += report.duration
    row = _rows.setdefault(held["row"], Counter())
    if report.when == "call" or report.outcome != "passed":
        row["xfailed" if hasattr(report, "wasxfail") else report.outcome] += 1
    if report.when == "call":
        row.update({"cases": 0} | held["counts"])
        row["cases"] += not held["counts"].get("cases")


def pytest_sessionfinish(session: pytest.Session) -> None:
    option = session.config.option
    is_worker = hasattr(session.config, "workerinput")
    if is_worker or option.markexpr != "slow" or option.keyword or not _rows:
        return
    document = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    today = datetime.date.today().isoformat()
    for name, counts in _rows.items():
        document[name] = {"date": today, "seconds": round(_seconds[name])} | counts
    RESULTS.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    subprocess.run([sys.executable, str(ROOT / "bench" / "report.py")], check=False)
