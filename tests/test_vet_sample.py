"""bench/vet_sample.py: what is drawn, how it is counted and shown; the passes over a module."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "bench"))


@pytest.fixture(scope="module")
def sample() -> ModuleType:
    return importlib.import_module("vet_sample")


def findings(sample: ModuleType, count: int) -> list[Any]:
    return [
        sample.Found(f"example.com/m{n % 2}@v1.0.0", f"a.go:{n}:1", "ctxdrop", f"say {n}: do")
        for n in range(count)
    ]


def test_the_same_findings_give_the_same_sample(sample: ModuleType) -> None:
    every = findings(sample, 100)
    drawn = sample.draw(every, 10, 7)
    assert drawn == sample.draw(reversed(every), 10, 7) != sample.draw(every, 10, 8)
    assert len(set(drawn)) == 10
    assert set(drawn) <= set(every)


def test_a_sample_of_few_is_all_of_them(sample: ModuleType) -> None:
    every = findings(sample, 3)
    assert sample.draw(every, 50, 7) == sorted(every)


@pytest.mark.parametrize(
    ("module", "short"),
    [
        ("std", "std"),
        ("github.com/minio/minio@v0.0.0-2026", "minio"),
        ("github.com/moby/moby/v2@v2.0.0", "moby"),
        ("go.temporal.io/server@v1.32.2", "server"),
    ],
)
def test_a_module_is_called_by_its_repository(sample: ModuleType, module: str, short: str) -> None:
    assert sample.short_name(module) == short


def test_counts_add_up(sample: ModuleType) -> None:
    every = findings(sample, 5)
    table = sample.counts_table(every, ["example.com/m0@v1.0.0", "example.com/m1@v1.0.0"])
    rows = [line.split("|")[2:-1] for line in table.splitlines()[2:]]
    counts = [list(map(int, row)) for row in rows]
    assert [sum(column) for column in zip(*counts[:2], strict=True)] == counts[2]
    assert counts[2][-1] == 5


def test_a_row_has_room_for_the_judgement(sample: ModuleType) -> None:
    table = sample.sample_table([sample.Found("std", "a.go:1:2", "lockcall", "x|y: do")])
    assert table.splitlines()[2] == r"| 1 | std | a.go:1:2 | lockcall | x\|y |  |  |"


@pytest.mark.go
@pytest.mark.slow
def test_the_passes_look_at_sources_alone(
    sample: ModuleType, go_toolchain: Path, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/go.mod").write_text("module example.com/m\n\ngo 1.24\n")
    (tmp_path / "m/m.go").write_text(
        'package m\n\nimport "context"\n\nfunc use(context.Context) {}\n\n'
        "func F(ctx context.Context) { use(context.Background()) }\n"
    )
    tool = tmp_path / "sample"
    sample.go([str(go_toolchain), "build", "-o", str(tool), "./internal/sample"], sample.TOOL)
    said = subprocess.run([tool, tmp_path / "m", "./..."], capture_output=True, check=True)
    assert b'"place":"m.go:7:35","analyzer":"ctxdrop"' in said.stdout
