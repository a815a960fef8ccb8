"""The command line's frame: imports, environment twins, exit statuses, broken pipes, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from layerkit import cli as frame
from layerkit.cli import cli, run
from layerkit.console import Console, human_size, redact, render_error
from layerkit.errors import FormatError, IntegrityError, LayerkitError, ToolError

HEAVY = {
    *(
        "rich",
        "numpy",
        "jinja2",
        "prometheus_client",
        "uvicorn",
        "urllib3",
        "zstandard",
        "deflate",
        "pyfastcdc",
    ),
    *("docker", "oras", "sqlite3", "asyncio", "subprocess", "blake3", "hdiffpatch", "iced_x86"),
}


def visible_verbs(group: click.Group = cli) -> list[tuple[str, click.Command]]:
    found = []
    for name, command in group.commands.items():
        if not command.hidden:
            found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {below}", verb) for below, verb in visible_verbs(command)]
    return found


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from layerkit.cli import run; status = run(['--help']);"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stderr.split())


@pytest.mark.parametrize(("name", "command"), visible_verbs())
def test_every_option_has_an_environment_twin(name: str, command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert str(parameter.envvar).startswith("LAYERKIT_"), (name, parameter.opts)


@pytest.mark.parametrize(("name", "command"), visible_verbs())
def test_every_verb_and_option_has_help(name: str, command: click.Command) -> None:
    assert command.help, name
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, (name, parameter.opts)


def test_a_bug_shows_its_traceback_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("oops")

    monkeypatch.setattr(frame, "_run", fail)
    assert run(["version"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("layerkit: error: unexpected RuntimeError: oops [UNKNOWN]\n")


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141)]
)
def test_interrupts_and_gone_readers_are_quiet(
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(frame, "_run", fail)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert run(["version"]) == status
    assert capsys.readouterr().err == ""


def test_a_closed_pipe_ends_without_a_traceback() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "layerkit", "version"],
            stdout=gone,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_serve_ends_well_on_sigterm(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    server = subprocess.Popen(
        [sys.executable, "-m", "layerkit", "serve", str(tmp_path), "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    with server:
        assert server.stdout.readline().startswith("http://127.0.0.1:")
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0


def test_errors_render_in_three_lines_and_tool_output_follows() -> None:
    error = ToolError("go build failed", stderr_tail="./main.go:3:1: syntax error\n", hint="fix it")
    assert render_error(error) == [
        "layerkit: error: go build failed [TOOL_FAILED]",
        "layerkit: cause: ./main.go:3:1: syntax error",
        "layerkit: hint:  fix it",
    ]


def test_secrets_and_queries_are_redacted() -> None:
    text = redact("got 403 from https://me:secret@example.com/v2/?token=1 twice")
    assert text == "got 403 from https://example.com/v2/?… twice"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5120.0 GiB")]
)
def test_human_size(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(("verbose", "traceback"), [(0, False), (1, False), (2, True)])
def test_tracebacks_need_vv(
    verbose: int, traceback: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Console(verbose=verbose).error(FormatError("bad magic", offset=7))
    assert ("errors.FormatError" in capsys.readouterr().err) == traceback


def test_got_and_want_are_named() -> None:
    lines = render_error(IntegrityError("layer is wrong", got="sha256:1", want="sha256:2"))
    assert lines[1] == "layerkit: cause: got sha256:1, want sha256:2"


def test_unknown_errors_end_with_1() -> None:
    assert LayerkitError.exit_status == 1


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["version"], 7, b"no space left for the output [STORE_FULL]"),
        (["inspect", "nothing", "--json"], 4, b"neither a file nor an image in a layout"),
    ],
)
def test_a_full_disk_under_the_output_is_no_crash(
    argv: list[str], status: int, said: bytes
) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "layerkit", *argv],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == status
    assert said in done.stderr and b"Traceback" not in done.stderr


def test_ctrl_c_while_modules_load_is_quiet() -> None:
    code = """
import os, signal, sys
class Hook:
    def find_spec(self, name, *_):
        if name == "layerkit.cli.make":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell's `&` began us
sys.meta_path.insert(0, Hook())
import layerkit.__main__
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")
