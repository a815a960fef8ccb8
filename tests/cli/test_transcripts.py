"""Each verb's success and each exit status, as a person sees them: tests/cli/*.txt."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transcript import parse_transcript, replay

FOLDER = Path(__file__).parent
NEEDS_GO = "needs go"


def cases() -> list[object]:
    found = []
    for path in sorted(FOLDER.glob("*.txt")):
        comments, _ = parse_transcript(path.read_text(encoding="utf-8"))
        marks = [pytest.mark.go] if any(NEEDS_GO in line for line in comments) else []
        found.append(pytest.param(path, id=path.stem, marks=marks))
    return found


@pytest.mark.parametrize("path", cases())
def test_transcript(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    comments, steps = parse_transcript(path.read_text(encoding="utf-8"))
    assert any("issue" in line for line in comments), "a transcript cites its issue"
    if any(NEEDS_GO in line for line in comments):
        request.getfixturevalue("go_toolchain")
    replay(steps, tmp_path, {"ROOT": str(FOLDER.parent.parent), "PYTHON": sys.executable})
