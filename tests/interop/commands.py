"""layerkit's commands as real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Server(NamedTuple):
    url: str
    pid: int


def layerkit(*argv: str | Path, status: int = 0, **environment: str) -> str:
    """Run a command that ends with `status`; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "layerkit", *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == status, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout if status == 0 else done.stdout + done.stderr


@contextmanager
def serving(*argv: str | Path) -> Iterator[Server]:
    """`layerkit serve` on a free port."""
    with subprocess.Popen(
        [sys.executable, "-m", "layerkit", "serve", *map(str, argv), "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield Server(process.stdout.readline().strip(), process.pid)
        finally:
            process.terminate()
            process.wait(30)
