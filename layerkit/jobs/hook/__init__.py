"""`layerkit hook`: what a registry says was pushed gets its chunks and updates, beside the image.

`settings` what it is told, `working` from notifications to jobs, `worker` the process of a job,
`making` what is made. The queue is `edges/queue`, the paths are `edges/hookapi`. Of a notification
only repository and tag are believed: the digest is the registry's, and the registry the configured
one. Spec: docs/design.md "The hook".
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from layerkit.edges.disk import Disk
from layerkit.edges.forker import Forker
from layerkit.edges.hookapi import HookSurface
from layerkit.edges.http import (
    Gate,
    Metrics,
    RequestLog,
    SecretGate,
    ServerApp,
    ServerOptions,
    run_app,
)
from layerkit.edges.queue import WorkQueue
from layerkit.edges.storage.opening import open_registry
from layerkit.jobs.hook.settings import HookSettings, read_secret
from layerkit.jobs.hook.working import Teller, Work

__all__ = ["HookSettings", "open_work", "read_secret", "run_hook"]

WORKER: Final = "from layerkit.jobs.hook.worker import main; main()"
PATIENCE: Final = 2.0  # seconds that a request to the registry is tried again: the queue is patient
_STATES: Final = {
    "waiting": "Tasks that wait.",
    "running": "Tasks that run.",
    "retrying": "Tasks that failed and will be tried again.",
    "failed": "Tasks that were given up, of those that are remembered.",
}


def run_hook(
    settings: HookSettings,
    options: ServerOptions,
    secret: str,
    *,
    env: Mapping[str, str],
    teller: Teller | None = None,
    ready: Callable[[str], None],
) -> None:
    """Listen until a signal; `ready` gets the URL once notifications are taken. `secret` "":
    whoever reaches the address is heard. `teller` lets agents know what is done. `env` is for the
    jobs: where docker's logins and proxies are."""

    @contextlib.contextmanager
    def open_app(metrics: Metrics, _: int, log: RequestLog | None) -> Iterator[ServerApp]:
        with open_work(settings, _Tally(metrics), env, teller) as work:
            yield ServerApp(
                HookSurface(work),
                metrics=metrics,
                gate=SecretGate(secret) if secret else Gate(None),
                limits=options.limits,
                log=log,
            )

    run_app(open_app, options, ready)


@contextlib.contextmanager
def open_work(
    settings: HookSettings, tally: _Tally, env: Mapping[str, str], teller: Teller | None = None
) -> Iterator[Work]:
    """The work, which runs as long as the body does."""
    registry = open_registry(
        settings.registry,
        config=settings.config,
        ca=settings.ca,
        realms=settings.realms,
        patience=PATIENCE,
    )
    queue = WorkQueue(settings.queue, Disk())
    try:
        tally.watch(queue)
        work = Work(settings, queue, registry, Forker(WORKER, env), tally, teller)
        work.start()
        try:
            yield work
        finally:
            work.stop()
    finally:
        queue.close()


class _Tally:
    """A hook's numbers, beside those of its HTTP."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._tasks = metrics.counter(
            "layerkit_hook_tasks", "Tasks that ended, by how.", ("kind", "result")
        )
        self._seconds = metrics.histogram(
            "layerkit_hook_task_seconds", "Seconds of a task.", ("kind",)
        )
        self._pushed = metrics.counter(
            "layerkit_hook_pushed", "Artifacts that were pushed beside images.", ("what",)
        )
        self._bytes = metrics.counter("layerkit_hook_sent_bytes", "Bytes of blobs that were sent.")

    def watch(self, queue: WorkQueue) -> None:
        """Show how long the queue is."""
        for state, text in _STATES.items():
            gauge = self._metrics.gauge(f"layerkit_hook_{state}_tasks", text)
            gauge.set_function(functools.partial(_count, queue, state))

    def ended(self, kind: str, result: str, seconds: float) -> None:
        self._tasks.labels(kind, result).inc()
        self._seconds.labels(kind).observe(seconds)

    def made(self, result: Mapping[str, Any]) -> None:
        self._pushed.labels("chunks").inc(result["chunks_count"])
        self._pushed.labels("update").inc(result["update_count"])
        self._pushed.labels("packs").inc(result["pack_count"])
        self._bytes.inc(result["sent_size"])


def _count(queue: WorkQueue, state: str) -> float:
    return float(getattr(queue.count(), state))
