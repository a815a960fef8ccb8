"""The HTTP edge of the chunk server: requests to calls of a `Source`, errors to documents.

`source` says what is served, `endpoints` which path asks for it, `app` who may ask and how the
answer goes out, `wire` what connections may do, `server` how it runs. Metrics, logs, limits, the
page and waiting have a module each.
"""

from __future__ import annotations

from layerkit.edges.http.answers import NEVER, Answer
from layerkit.edges.http.app import ServerApp, Surface, make_app, make_server_app
from layerkit.edges.http.endpoints import Call, Endpoint
from layerkit.edges.http.gate import Gate, SecretGate
from layerkit.edges.http.logs import RequestLog
from layerkit.edges.http.metrics import Metrics
from layerkit.edges.http.options import (
    DEFAULT_LISTEN,
    Limits,
    ServerOptions,
    TlsFiles,
    parse_listen,
)
from layerkit.edges.http.server import (
    OpenApp,
    OpenSource,
    RunningServer,
    run_app,
    run_server,
    start_server,
)
from layerkit.edges.http.source import (
    Blob,
    Joined,
    Meter,
    RepositoryFacts,
    Source,
    UpdateAnswer,
    UpdateFacts,
    VersionFacts,
)

__all__ = [
    "DEFAULT_LISTEN",
    "NEVER",
    "Answer",
    "Blob",
    "Call",
    "Endpoint",
    "Gate",
    "Joined",
    "Limits",
    "Meter",
    "Metrics",
    "OpenApp",
    "OpenSource",
    "RepositoryFacts",
    "RequestLog",
    "RunningServer",
    "SecretGate",
    "ServerApp",
    "ServerOptions",
    "Source",
    "Surface",
    "TlsFiles",
    "UpdateAnswer",
    "UpdateFacts",
    "VersionFacts",
    "make_app",
    "make_server_app",
    "parse_listen",
    "run_app",
    "run_server",
    "start_server",
]
