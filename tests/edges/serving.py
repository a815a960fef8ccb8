"""A server of the HTTP edge over a `MemorySource`, as the tests start it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import urllib3
from memory_source import MemorySource

from layerkit.edges.http import (
    Limits,
    RunningServer,
    ServerApp,
    TlsFiles,
    make_server_app,
    start_server,
)
from layerkit.edges.http.gate import Gate
from layerkit.edges.http.logs import RequestLog
from layerkit.edges.http.metrics import Metrics
from layerkit.edges.tokens import TokenFile

__all__ = ["Served", "connect", "get", "read_until_closed", "serving"]

HTTP = urllib3.PoolManager(retries=False)


class Served:
    def __init__(self, app: ServerApp, server: RunningServer) -> None:
        self.app = app
        self.url = server.url
        self.server = server

    def metric(self, name: str, **labels: str) -> float:
        """A number as Prometheus would read it; 0 where there is none."""
        self.app.ready.flush(self.app.metrics)
        for line in self.app.metrics.render().decode().splitlines():
            key, _, value = line.rpartition(" ")
            found, _, rest = key.partition("{")
            if found == name and all(f'{label}="{text}"' in rest for label, text in labels.items()):
                return float(value)
        return 0.0


@contextlib.contextmanager
def serving(
    source: MemorySource,
    tokens: Path | None = None,
    limits: Limits | None = None,
    log: RequestLog | None = None,
    tls: TlsFiles | None = None,
) -> Iterator[Served]:
    app = make_server_app(
        source,
        metrics=Metrics(),
        gate=Gate(TokenFile(tokens) if tokens else None),
        limits=limits or Limits(),
        log=log,
    )
    with start_server(app, tls=tls) as running:
        yield Served(app, running)


def get(
    served: Served, path: str, method: str = "GET", **kwargs: object
) -> urllib3.BaseHTTPResponse:
    return HTTP.request(method, served.url + path, **kwargs)  # type: ignore[arg-type]


def connect(served: Served) -> socket.socket:
    host, port = served.url.partition("://")[2].split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read_until_closed(sock: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            found += part
    return found
