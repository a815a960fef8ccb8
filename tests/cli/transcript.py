"""Reads and replays transcripts: what a person types, and what comes back.

A `*.txt` file is comments (`# …`), then steps. A step is a line `$ command`, then the expected
stdout; stderr lines start with `! `; `? N` is the exit status (0 if absent); `= path` lists a file
that exists after the step, `- path` one that does not. `…` stands for any run of characters in a
line, a line `…` alone for any lines. `$LAYERKIT`'s first word `layerkit` is the installed command.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Step", "parse_transcript", "replay"]


@dataclass
class Step:
    """One command and what is expected of it."""

    command: str
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    status: int = 0
    files: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


def parse_transcript(text: str) -> tuple[list[str], list[Step]]:
    """The comments and the steps."""
    comments: list[str] = []
    steps: list[Step] = []
    for line in text.splitlines():
        if line.startswith("# "):
            comments.append(line[2:])
        elif line.startswith("$ "):
            steps.append(Step(line[2:]))
        elif not steps:
            assert not line.strip(), f"text before the first step: {line!r}"
        elif line.startswith("! "):
            steps[-1].stderr.append(line[2:])
        elif line.startswith("? "):
            steps[-1].status = int(line[2:])
        elif line.startswith("= "):
            steps[-1].files.append(line[2:])
        elif line.startswith("- "):
            steps[-1].gone.append(line[2:])
        elif line.strip():
            steps[-1].stdout.append(line)
    return comments, steps


def replay(steps: list[Step], folder: Path, environment: dict[str, str]) -> None:
    """Run each step in `folder` and compare; assertion errors say which step."""
    base = {key: value for key, value in os.environ.items() if not key.startswith("LAYERKIT_")}
    for step in steps:
        argv = shlex.split(step.command)
        settings = {}
        while "=" in argv[0]:
            key, _, value = argv.pop(0).partition("=")
            settings[key] = value
        if argv[0] == "layerkit":
            argv[:1] = [sys.executable, "-m", "layerkit"]
        done = subprocess.run(
            argv,
            cwd=folder,
            env={**base, **environment, **settings},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        said = f"$ {step.command}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == step.status, f"status {done.returncode}: {said}"
        assert matches(step.stdout, done.stdout), f"stdout differs: {said}"
        assert matches(step.stderr, done.stderr), f"stderr differs: {said}"
        for name in step.files:
            assert (folder / name).exists(), f"{name} is missing after {said}"
        for name in step.gone:
            assert not (folder / name).exists(), f"{name} was left by {said}"


def matches(expected: list[str], text: str) -> bool:
    """Does `text` match the expected lines? Empty lines do not count."""
    pattern = ""
    for line in expected:
        if line.strip() == "…":
            pattern += r"(?:.*\n)*"
        else:
            pattern += ".*".join(re.escape(part) for part in line.rstrip().split("…")) + r"\s*\n"
    lines = [line for line in text.splitlines() if line.strip()]
    return re.fullmatch(pattern, "".join(line + "\n" for line in lines)) is not None
