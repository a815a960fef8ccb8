"""How a server runs, as values: where it listens, whom it lets in, what it bears."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from layerkit.errors import UsageError
from layerkit.formats.reference import is_loopback

__all__ = ["DEFAULT_LISTEN", "Limits", "ServerOptions", "TlsFiles", "parse_listen"]

DEFAULT_LISTEN: Final = "127.0.0.1:7420"
MAX_WORKER_COUNT: Final = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker bears. Rates are by token, or by address where there are no tokens."""

    request_rate: float = 0.0  # requests a second, of all workers; 0: as many as come
    byte_rate: float = 0.0  # bytes of answers a second, of all workers; 0: as many as are asked for
    burst_seconds: float = 10.0  # so much of both may be taken at once
    max_connections: int = 8192  # each takes about 10 KiB
    max_address_connections: int = 0  # of one address; 0: as many, for a balancer is one address
    max_head_size: int = 32 << 10  # bytes: 32 digests in a query are 2.5 KB
    max_bodies_size: int = 128 << 20  # bytes of request bodies held at once
    head_seconds: float = 10.0  # from the first byte, or the accept, to a whole head
    body_seconds: float = 30.0  # a node sends at most 2 MiB of ids
    idle_seconds: float = 20.0  # between two requests of a connection
    write_seconds: float = 30.0  # an answer may stand still so long in all, and as long as its
    write_rate: float = 8192.0  # delivered bytes take at this rate (bytes a second)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: certificate chain, key, and the CA whose certificates clients must show."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """All that `run_server` needs besides a source."""

    listen: str = DEFAULT_LISTEN
    tls: TlsFiles | None = None
    token_file: Path | None = None
    open_to_all: bool = False  # without tokens on an address that others reach
    worker_count: int = 1
    log_format: str = ""  # "json", "text", or "" for no line a request
    drain_seconds: float = 1.0  # after SIGTERM: /readyz says 503, requests are still taken
    shutdown_seconds: float = 10.0  # how long running answers may take after that
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        host, _ = parse_listen(self.listen)
        if not 1 <= self.worker_count <= MAX_WORKER_COUNT:
            raise UsageError(f"{self.worker_count} workers, want 1 to {MAX_WORKER_COUNT}")
        guarded = self.token_file is not None or (self.tls and self.tls.client_ca)
        if not guarded and not self.open_to_all and not is_loopback(host):
            raise UsageError(
                f"{self.listen} is not a loopback address, and no tokens are asked for",
                hint="add --token-file (see 'layerkit token add'), or --open to serve everyone",
            )


def parse_listen(text: str) -> tuple[str, int]:
    """``host:port``, ``[v6]:port`` or ``:port`` (loopback)."""
    host, colon, raw_port = text.rpartition(":")
    if not colon or not (raw_port.isascii() and raw_port.isdigit()) or int(raw_port) > 65535:
        raise UsageError(f"{text[:80]!r} is not an address", hint=f"write {DEFAULT_LISTEN}")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(raw_port)
