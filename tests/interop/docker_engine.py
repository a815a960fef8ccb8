"""A handle on a running Docker engine, for the tests of this folder."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Engine:
    """A running engine; `docker` runs its client."""

    socket: Path
    log: Path
    tls_address: str = ""  # tcp://, where it asks for a certificate
    keys: Path = Path()  # the folder of ca.pem, cert.pem and key.pem

    def docker(self, *argv: str | Path, timeout: float = 120) -> str:
        """Standard output of the client; fails the test with what it said."""
        done = subprocess.run(
            ["docker", "-H", f"unix://{self.socket}", *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"docker {argv[0]}: {done.stderr}\n{self.log_tail()}"
        return done.stdout

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-15:])
