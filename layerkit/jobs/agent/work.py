"""What the agent asks of its jobs, as values that both sides know; nothing heavy loads here.

A job is one JSON object: `do` names it (see `worker`), `place` says where things are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from layerkit.digest import Digest
from layerkit.formats.reference import Reference
from layerkit.jobs.agent.settings import Server, Settings

__all__ = ["EngineAt", "Place", "kept_name"]


@dataclass(frozen=True, slots=True)
class EngineAt:
    """An engine that gets the images."""

    kind: str
    address: str
    namespace: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node keeps things. `kind` is rootfs or layout, or "" for no folders."""

    store: str
    quota: int
    kind: str
    root: str
    engines: tuple[EngineAt, ...]
    platform: str
    path: str  # PATH, to find ctr
    ca: str = ""
    client_cert: str = ""
    client_key: str = ""
    verify: tuple[str, ...] = ()  # files of public keys
    token_realms: tuple[str, ...] = ()
    docker_config: str = ""

    @classmethod
    def of(cls, settings: Settings, path: str) -> Place:
        addresses = {"docker": settings.docker, "containerd": settings.containerd}
        engines = tuple(
            EngineAt(kind, addresses[kind], settings.containerd_namespace) for kind in settings.load
        )
        kind = "rootfs" if settings.rootfs else "layout" if settings.layouts else ""
        root, store = str(settings.folders or ""), str(settings.store)
        return cls(
            store,
            settings.quota,
            kind,
            root,
            engines,
            settings.platform,
            path,
            ca=str(settings.ca or ""),
            client_cert=str(settings.client_cert or ""),
            client_key=str(settings.client_key or ""),
            verify=tuple(map(str, settings.verify)),
            token_realms=settings.token_realms,
            docker_config=str(settings.docker_config or ""),
        )

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Place:
        engines = tuple(EngineAt(**entry) for entry in document["engines"])
        return cls(**{**document, "engines": engines})

    def as_document(self) -> dict[str, object]:
        return asdict(self)


def parse_servers(documents: list[dict[str, Any]]) -> tuple[Server, ...]:
    return tuple(Server(**entry) for entry in documents)


def kept_name(ref: Reference, digest: Digest) -> str:
    """How the store names one version of `ref`, so that it stays when the tag moves on."""
    return str(replace(ref.tagged, digest=digest))
