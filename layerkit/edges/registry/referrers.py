"""Referrers in a registry: by its API where it has one, else by the `sha256-<hex>` fallback tag.

The fallback tag names an index that every publisher reads, adds to and writes, and registries know
no conditional write of it. So who added looks again after a pause that is long against the time
between another's read and write, and adds again if it was overwritten; it gives up with an error,
never in silence. Spec: OCI distribution-spec 1.1 "Listing Referrers", "Pushing Manifests with
Subject".
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final
from urllib.parse import quote

from layerkit.digest import Digest
from layerkit.edges.registry.client import Registry
from layerkit.errors import FormatError, IntegrityError, NotFoundError, RemoteError
from layerkit.formats.oci import (
    EMPTY,
    INDEX,
    MANIFEST_TYPES,
    MAX_DOCUMENT_SIZE,
    MAX_ITEMS,
    Descriptor,
    Index,
    describe,
    parse_index,
    parse_manifest,
    serialize_index,
)

__all__ = ["add_fallback", "fallback_tag", "is_fallback_tag", "list_referrers"]

SETTLE_SECONDS: Final = 0.05  # at least, before the index is looked at again,
SETTLE_FACTOR: Final = 2.0  # or so many times what our own read and write of it took
ROUNDS: Final = 12
MAX_PAGES: Final = 32
MAX_UNTYPED: Final = 64  # of a list: each costs a request
# cosign's tags beside it have the same beginning
_FALLBACK: Final = re.compile(r"sha256-[0-9a-f]{64}(\.[a-z0-9]+)?")
_log = logging.getLogger(__name__)


def fallback_tag(subject: Digest) -> str:
    return f"{subject.algorithm}-{subject.hex}"


def is_fallback_tag(tag: str) -> bool:
    """Is it no tag of an image, but one that lists or carries what refers to an image?"""
    return _FALLBACK.fullmatch(tag) is not None


def list_referrers(
    registry: Registry,
    name: str,
    subject: Digest,
    artifact_type: str = "",
    *,
    strict: bool = False,
) -> list[Descriptor]:
    """What refers to a manifest of repository `name`, as the registry lists it. One that is known
    to have no such API is asked for it only where the tag is absent: it may have it by now. A
    fallback tag that names no list counts as an empty one, if not `strict`: then it raises
    FormatError, as what comes from the API does."""
    found = None
    if registry.lists_referrers is not False:
        found = _list_by_api(registry, name, subject, artifact_type)
    if found is None:
        index, top = _read_fallback(registry, name, subject, strict=strict)
        found = list(index.manifests)
        if top is None and registry.lists_referrers is False:
            found = _list_by_api(registry, name, subject, artifact_type) or []
    found = _complete(registry, name, found)
    return [entry for entry in found if artifact_type in ("", entry.artifact_type)]


def _list_by_api(
    registry: Registry, name: str, subject: Digest, artifact_type: str
) -> list[Descriptor] | None:
    """None where there is no such API: old registries answer 404, proxies anything."""
    transport = registry.transport
    query = f"?artifactType={quote(artifact_type)}" if artifact_type else ""
    url = f"{transport.base}/v2/{name}/referrers/{subject}{query}"
    found: list[Descriptor] = []
    for _ in range(MAX_PAGES):
        answer = transport.send("GET", url, headers={"Accept": INDEX}, scope=name)
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        if answer.status_code in (400, 404, 405, 406) or media_type != INDEX:
            if answer.status_code in (401, 403):
                raise transport.error_of(answer)
            answer.close()
            registry.lists_referrers = False
            return None
        registry.lists_referrers = True
        following = answer.links.get("next", {}).get("url", "")
        found += parse_index(transport.traffic.read(answer, MAX_DOCUMENT_SIZE)).manifests
        if not following or len(found) > MAX_ITEMS:
            break
        url = transport.locate(url, following)
    return found


def _complete(registry: Registry, name: str, found: list[Descriptor]) -> list[Descriptor]:
    """With the types that the manifests have, where a registry tells none, or that of the empty
    config: go-containerregistry's (v0.22.1, pkg/registry/manifest.go) tells always the config's."""
    left, completed = MAX_UNTYPED, []
    for entry in found:
        if entry.artifact_type in ("", EMPTY) and entry.media_type in MANIFEST_TYPES and left > 0:
            left -= 1
            try:
                manifest = parse_manifest(registry.read_manifest(name, str(entry.digest))[1])
            except (FormatError, IntegrityError, NotFoundError) as exc:
                _log.info("referrer %s is refused: %s", entry.digest.short, exc.message)
                continue
            entry = replace(
                entry,
                artifact_type=manifest.artifact_type or manifest.config.media_type,
                annotations=entry.annotations or manifest.annotations,
            )
        completed.append(entry)
    return completed


def _read_fallback(
    registry: Registry, name: str, subject: Digest, *, strict: bool = False
) -> tuple[Index, Digest | None]:
    """The index that the fallback tag names, and its digest; an empty one if there is none."""
    try:
        top, raw = registry.read_manifest(name, fallback_tag(subject))
        return parse_index(raw), top.digest
    except NotFoundError:
        return Index(()), None
    except FormatError as exc:
        if strict:
            raise
        _log.warning("tag %s of %s is no list: %s", fallback_tag(subject), name, exc.message)
        return Index(()), None


def add_fallback(
    registry: Registry,
    name: str,
    subject: Digest,
    referrers: Sequence[Descriptor],
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """List `referrers` under the fallback tag of `subject`, beside what others list there."""
    tag = fallback_tag(subject)
    entries = [replace(one, platform=None) for one in referrers]
    for _ in range(ROUNDS):
        began = now()
        index, missing = _find_missing(registry, name, subject, entries)
        if not missing:
            return
        try:
            _put_list(registry, name, tag, index, missing)
        except RemoteError:  # a garbage collection may have taken what is listed
            there = [one for one in index.manifests if registry.resolve(name, str(one.digest))]
            if len(there) == len(index.manifests):
                raise
            _put_list(registry, name, tag, replace(index, manifests=tuple(there)), missing)
        window = max(SETTLE_SECONDS, SETTLE_FACTOR * (now() - began))
        sleep(window * random.uniform(1.0, 2.0))
    if _find_missing(registry, name, subject, entries)[1]:
        raise RemoteError(
            f"tag {tag[:19]} of {registry.host}/{name} is overwritten again and again",
            cause=f"tried {ROUNDS} times",
            hint="push again",
        )


def _put_list(
    registry: Registry, name: str, tag: str, index: Index, more: Sequence[Descriptor]
) -> None:
    raw = serialize_index(replace(index, manifests=(*index.manifests, *more)))
    registry.put_manifest(name, tag, describe(raw, INDEX), raw)


def _find_missing(
    registry: Registry, name: str, subject: Digest, entries: Sequence[Descriptor]
) -> tuple[Index, list[Descriptor]]:
    """The list as it is, and what it lacks."""
    index, _digest = _read_fallback(registry, name, subject)
    listed = {item.digest for item in index.manifests}
    return index, [entry for entry in entries if entry.digest not in listed]
