"""`layerkit serve`: the images of a storage as a chunk server. `source` reads the storage."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from layerkit.edges.http import (
    DEFAULT_LISTEN,
    Meter,
    RunningServer,
    ServerOptions,
    Source,
    make_app,
    parse_listen,
    run_server,
    start_server,
)
from layerkit.edges.storage import FolderStorage, Storage
from layerkit.jobs.serve.source import StorageSource, open_layout

__all__ = ["DEFAULT_LISTEN", "StorageSource", "open_layout", "parse_listen", "serve", "start"]


def serve(
    open_storage: Callable[[], Storage], options: ServerOptions, ready: Callable[[str], None]
) -> None:
    """Serve a storage until a signal, and make aside what nodes will ask for; `ready` gets the URL
    once requests can be sent. `open_storage` is called in each worker."""

    @contextlib.contextmanager
    def open_source(meter: Meter, worker: int) -> Iterator[Source]:
        storage = open_storage()
        bare_name = (
            storage.path.resolve().name.lower() if isinstance(storage, FolderStorage) else ""
        )
        source, stop = StorageSource(storage, bare_name=bare_name), threading.Event()
        if worker == 0:
            threading.Thread(target=source.keep_packing, args=(stop,), daemon=True).start()
        try:
            yield source
        finally:
            stop.set()

    run_server(open_source, options, ready)


def start(layout: Path, host: str = "127.0.0.1", port: int = 0) -> RunningServer:
    """Serve `layout` from a thread; `.url`, `.stop()`, or as a context. Packs nothing."""
    return start_server(make_app(open_layout(layout)), host, port)
