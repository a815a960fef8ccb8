"""`layerkit serve`: an OCI layout folder as a chunk server. `source` reads the layout."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from layerkit.edges.http import RunningServer, make_app, run_server, start_server
from layerkit.errors import UsageError
from layerkit.jobs.serve.source import LayoutSource

__all__ = ["DEFAULT_LISTEN", "LayoutSource", "parse_listen", "serve", "start"]

DEFAULT_LISTEN: Final = "127.0.0.1:7420"


def parse_listen(text: str) -> tuple[str, int]:
    """``host:port``, ``[v6]:port`` or ``:port`` (loopback)."""
    host, colon, raw_port = text.rpartition(":")
    if not colon or not (raw_port.isascii() and raw_port.isdigit()) or int(raw_port) > 65535:
        raise UsageError(f"{text[:80]!r} is not an address", hint=f"write {DEFAULT_LISTEN}")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(raw_port)


def serve(layout: Path, listen: str, ready: Callable[[str], None]) -> None:
    """Serve `layout` until a signal, and pack its forms aside; `ready` gets the URL once the port
    is bound."""
    host, port = parse_listen(listen)
    source, stop = LayoutSource(layout), threading.Event()
    packing = threading.Thread(target=source.keep_packing, args=(stop,), daemon=True)
    packing.start()
    try:
        run_server(make_app(source), host, port, ready)
    finally:
        stop.set()


def start(layout: Path, host: str = "127.0.0.1", port: int = 0) -> RunningServer:
    """Serve `layout` from a thread; `.url`, `.stop()`, or as a context. Packs nothing."""
    return start_server(make_app(LayoutSource(layout)), host, port)
