"""Reads and replays transcripts: what a person types, and what comes back.

A `*.txt` file is comments (`# …`), then steps. A step is a line `$ command`, then the expected
stdout; stderr lines start with `! `; `? N` is the exit status (0 if absent); `= path` lists a file
that exists after the step, `- path` one that does not. `…` stands for any run of characters in a
line, a line `…` alone for any lines. A first word `layerkit` is the command itself, each time in a
process of its own: one that is forked where everything is imported already, which takes a tenth of
a start's time. Real starts are in test_cli.py.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Step", "parse_transcript", "replay"]

TIMEOUT = 120  # seconds for a step
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "layerkit.__main__",
        *(f"layerkit.cli.{name}" for name in ("agent", "keeping", "make", "pulling", "serving")),
        *(f"layerkit.jobs.{name}" for name in ("build", "debug", "diff", "inspect", "publish")),
        *(f"layerkit.jobs.{name}" for name in ("pull", "serve", "split", "verify")),
        *("layerkit.cli.bundle", "layerkit.jobs.bundle", "layerkit.jobs.sign"),
        *("layerkit.edges.bundle", "layerkit.edges.signing"),
        *("layerkit.edges.registry", "layerkit.edges.storage", "layerkit.edges.http"),
        *("rich.console", "rich.table", "cyclonedx.output.json"),
    ]
)


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
        settings = {**base, **environment}
        while "=" in argv[0]:
            key, _, value = argv.pop(0).partition("=")
            settings[key] = value
        done = run_layerkit if argv[0] == "layerkit" else run_other
        status, stdout, stderr = done(argv, folder, settings)
        said = f"$ {step.command}\n{stdout}\n{stderr}"
        assert status == step.status, f"status {status}: {said}"
        assert matches(step.stdout, stdout), f"stdout differs: {said}"
        assert matches(step.stderr, stderr), f"stderr differs: {said}"
        for name in step.files:
            assert (folder / name).exists(), f"{name} is missing after {said}"
        for name in step.gone:
            assert not (folder / name).exists(), f"{name} was left by {said}"


def run_other(
    argv: list[str], folder: Path, environment: Mapping[str, str]
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of any command."""
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def run_layerkit(
    argv: list[str], folder: Path, environment: Mapping[str, str]
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `layerkit`, forked."""
    said = [folder.parent / f"{folder.name}.{name}" for name in ("stdout", "stderr")]
    process = FORKS.Process(target=_be_layerkit, args=(argv, folder, dict(environment), said))
    process.start()
    process.join(TIMEOUT)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode, *(path.read_text(encoding="utf-8") for path in said)


def _be_layerkit(
    argv: list[str], folder: Path, environment: dict[str, str], said: list[Path]
) -> None:
    """In the forked process: take the place of a command that was started, and be it."""
    from layerkit.__main__ import main

    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, place in enumerate((Path(os.devnull), *said)):
        opened = os.open(place, flags if number else os.O_RDONLY, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    main()


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
