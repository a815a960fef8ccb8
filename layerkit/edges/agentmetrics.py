"""The agent's numbers for Prometheus, in a registry of their own."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["AgentMetrics"]

SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class AgentMetrics:
    """Counted by the agent; `render` is what `/metrics` answers."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._names: set[str] = set()  # that have series of their own
        self._pulls = Counter(
            "layerkit_agent_pulls", "Pulls, by how they ended.", ["result"], registry=registry
        )
        self._moved = Counter(
            "layerkit_agent_moved_bytes", "Bytes that pulls moved.", registry=registry
        )
        self._saved = Counter(
            "layerkit_agent_saved_bytes",
            "Bytes of layers that plain pulls would have moved on top.",
            registry=registry,
        )
        self._seconds = Histogram(
            "layerkit_agent_pull_seconds", "Seconds a pull.", buckets=SECONDS, registry=registry
        )
        self._versions = Gauge(
            "layerkit_agent_versions", "Versions held.", ["name"], registry=registry
        )
        self._last = Gauge(
            "layerkit_agent_last_success_timestamp_seconds",
            "When a name was last pulled, or found to be current.",
            ["name"],
            registry=registry,
        )
        self._failing = Gauge(
            "layerkit_agent_failing_names", "Names whose last pull failed.", registry=registry
        )
        self._running = Gauge(
            "layerkit_agent_running_pulls", "Pulls that run now.", registry=registry
        )
        self._store_size = Gauge(
            "layerkit_agent_store_bytes", "Bytes of the store's files.", registry=registry
        )
        self._hand_overs = Counter(
            "layerkit_agent_hand_overs",
            "Images handed to engines, by how it ended.",
            ["engine", "result"],
            registry=registry,
        )
        for result in ("updated", "current", "failed"):
            self._pulls.labels(result)

    def pulled(self, *, moved_size: int, whole_size: int, seconds: float, is_new: bool) -> None:
        self._pulls.labels("updated" if is_new else "current").inc()
        self._moved.inc(moved_size)
        if is_new:
            self._saved.inc(max(0, whole_size - moved_size))
        self._seconds.observe(seconds)

    def failed(self) -> None:
        self._pulls.labels("failed").inc()

    def running(self, change: int) -> None:
        self._running.inc(change)

    def handed_over(self, engine: str, *, good: bool) -> None:
        self._hand_overs.labels(engine, "done" if good else "failed").inc()

    def hold(self, name: str, version_count: int, last_success: float) -> None:
        """What is held of a name; nothing any more: its series go."""
        if version_count:
            self._versions.labels(name).set(version_count)
            self._last.labels(name).set(last_success)
            self._names.add(name)
        elif name in self._names:
            self._names.discard(name)
            self._versions.remove(name)
            self._last.remove(name)

    def store(self, size: int) -> None:
        self._store_size.set(size)

    def failing(self, count: int) -> None:
        self._failing.set(count)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)
