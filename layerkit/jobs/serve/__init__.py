"""`layerkit serve`: the images of a storage as a chunk server. `source` reads the storage."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from layerkit.jobs.serve.source import SourceOptions, StorageSource, open_layout

__all__ = [
    "DEFAULT_LISTEN",
    "SourceOptions",
    "StorageSource",
    "open_layout",
    "parse_listen",
    "serve",
    "start",
]


def serve(
    open_storage: Callable[[], Storage],
    options: ServerOptions,
    ready: Callable[[str], None],
    source_options: SourceOptions | None = None,
) -> None:
    """Serve a storage until a signal, and make aside what nodes will ask for; `ready` gets the URL
    once requests can be sent. `open_storage` is called in each worker; one of them prepares, and
    each gives its part of a caller's budget and of the memory."""
    given = source_options or SourceOptions()

    @contextlib.contextmanager
    def open_source(meter: Meter, worker: int) -> Iterator[Source]:
        storage = open_storage()
        own = replace(
            given,
            bare_name=_bare_name(storage),
            budget_seconds=given.budget_seconds / options.worker_count,
            memory_size=given.memory_size // options.worker_count,
            is_preparing=worker == 0 or storage.made is not None,
        )
        source, stop = StorageSource(storage, own, meter), threading.Event()
        if worker == 0:
            preparing = source.make_preparing()
            threading.Thread(
                target=preparing.run, args=(stop,), name="layerkit-prepare", daemon=True
            ).start()
        try:
            yield source
        finally:
            stop.set()

    run_server(open_source, options, ready)


def _bare_name(storage: Storage) -> str:
    return storage.path.resolve().name.lower() if isinstance(storage, FolderStorage) else ""


def start(layout: Path, host: str = "127.0.0.1", port: int = 0) -> RunningServer:
    """Serve `layout` from a thread; `.url`, `.stop()`, or as a context. Prepares nothing."""
    return start_server(make_app(open_layout(layout)), host, port)
