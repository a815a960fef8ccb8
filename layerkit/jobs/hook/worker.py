"""Where a hook's jobs run: a process that forks for each, so that its memory ends with it.

A job is a JSON document, and so is what it gives back (`edges.forked`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from layerkit.digest import Digest
from layerkit.edges.forked import serve_jobs
from layerkit.edges.jsonlog import log_as_json
from layerkit.edges.registry import Registry
from layerkit.edges.storage.opening import open_registry
from layerkit.formats.reference import Reference
from layerkit.jobs.hook.making import make_for

__all__ = ["main", "run_job"]


def run_job(job: Mapping[str, object]) -> dict[str, object]:
    """Make what is missing beside one image."""
    registry = _open(job)
    ref = Reference(registry.host, str(job["name"]), str(job["tag"]))
    seen, unworthy = job["seen"], job["unworthy"]
    assert isinstance(seen, list) and isinstance(unworthy, list)
    digests = [Digest.parse(str(text)) for text in seen]
    top, count = Digest.parse(str(job["digest"])), int(str(job["count"]))
    return asdict(make_for(registry, ref, top, digests, count, [str(one) for one in unworthy]))


def _open(job: Mapping[str, object]) -> Registry:
    config, ca, realms = str(job["config"]), str(job["ca"]), job["realms"]
    assert isinstance(realms, list)
    return open_registry(
        str(job["registry"]),
        config=Path(config) if config else None,
        ca=Path(ca) if ca else None,
        realms=[str(realm) for realm in realms],
    )


def main() -> None:
    """The program. What its forks need is loaded by now, that of a registry, too."""
    log_as_json()
    serve_jobs(run_job)
