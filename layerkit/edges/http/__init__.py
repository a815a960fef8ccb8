"""The HTTP edge of the chunk server: requests to calls of a `Source`, errors to documents.

`source` says what is served, `endpoints` which path asks for it, `app` who may ask and how the
answer goes out, `wire` what connections may do, `server` how it runs. Metrics, logs, limits, the
page and waiting have a module each.
"""

from __future__ import annotations

from layerkit.edges.http.app import ServerApp, make_app
from layerkit.edges.http.options import (
    DEFAULT_LISTEN,
    Limits,
    ServerOptions,
    TlsFiles,
    parse_listen,
)
from layerkit.edges.http.server import OpenSource, RunningServer, run_server, start_server
from layerkit.edges.http.source import (
    Blob,
    Meter,
    RepositoryFacts,
    Share,
    Source,
    UpdateAnswer,
    UpdateFacts,
    VersionFacts,
)

__all__ = [
    "DEFAULT_LISTEN",
    "Blob",
    "Limits",
    "Meter",
    "OpenSource",
    "RepositoryFacts",
    "RunningServer",
    "ServerApp",
    "ServerOptions",
    "Share",
    "Source",
    "TlsFiles",
    "UpdateAnswer",
    "UpdateFacts",
    "VersionFacts",
    "make_app",
    "parse_listen",
    "run_server",
    "start_server",
]
