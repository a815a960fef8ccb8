"""An agent as a real process, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from layerkit.edges.localclient import ask_agent
from layerkit.errors import LayerkitError

__all__ = ["AgentProcess", "eventually"]


def eventually(check: Callable[[], object], seconds: float = 30.0) -> Any:
    """The first true answer of `check`; fails the test with its last one."""
    end = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {check}, last {found!r}"
        time.sleep(0.02)


class AgentProcess:
    """`layerkit agent` over a folder of the test; `start` may be called again after its end."""

    def __init__(self, folder: Path, *options: str | Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.root = folder / "root"
        self.socket = folder / "agent.sock"
        self.log = folder / "agent.log"
        self.options = [str(option) for option in options]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def argv(self) -> list[str]:
        paths = ["--store", str(self.store), "--socket", str(self.socket)]
        return [sys.executable, "-m", "layerkit", "agent", *paths, *self.options]

    def start(self, **env: str) -> AgentProcess:
        """Start and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, **env}
            )
        eventually(self.answers)
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(LayerkitError):
            return bool(self.ask("GET", "/v1/status"))
        return False

    def kill(self) -> None:
        """`kill -9` of the agent alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def ask(self, method: str, path: str, document: dict[str, Any] | None = None) -> Any:
        return ask_agent(self.socket, method, path, document, timeout=60)

    def post(self, path: str, **document: object) -> Any:
        return self.ask("POST", path, document)

    def name(self, ref: str) -> dict[str, Any]:
        found = self.ask("GET", "/v1/status")["names"]
        return next((name for name in found if name["ref"] == ref), {})

    def wait_for(self, ref: str, digest: object, seconds: float = 30.0) -> dict[str, Any]:
        def has() -> dict[str, Any] | None:
            found = self.name(ref)
            done = found.get("state") not in ("pulling", "queued")
            return found if found.get("digest") == str(digest) and done else None

        return dict(eventually(has, seconds))

    def records(self) -> list[dict[str, Any]]:
        """What it logged; each line must be JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def process_ids(self) -> list[int]:
        """The agent and all below it."""
        assert self.process is not None
        found = [self.process.pid]
        for pid in found:
            listed = Path(f"/proc/{pid}/task/{pid}/children")
            with contextlib.suppress(OSError):
                found += [int(child) for child in listed.read_text().split()]
        return found


@contextlib.contextmanager
def stopped_at_end(agent: AgentProcess) -> Iterator[AgentProcess]:
    try:
        yield agent
    finally:
        if agent.process is not None and agent.process.poll() is None:
            agent.process.kill()
            agent.process.wait()
