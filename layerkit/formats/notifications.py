"""Registry notifications: which tags a body says were pushed.

Read are the envelope of Docker's distribution (`application/vnd.docker.distribution.events.v1+json`
of release 2, `…events.v2+json` of release 3: `events`, each with `action` and `target`), and
Harbor's webhook (`type` PUSH_ARTIFACT, `event_data`). Of either only repository and tag are taken:
the rest is not trusted. An event that says nothing of use (a pull, a blob, a manifest by digest, a
name that is none) is left out, for a registry sends a refused body again and again; FormatError is
for a body that is no notification at all.

Spec: docs/format.md "Notifications"; distribution's notifications/event.go (v2.8, v3.1);
goharbor.io/docs "Configure Webhook Notifications". Limits: MAX_NOTIFICATION_SIZE, MAX_EVENT_COUNT.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from layerkit.errors import FormatError
from layerkit.formats.reference import is_repository, is_tag

__all__ = [
    "MAX_EVENT_COUNT",
    "MAX_NOTIFICATION_SIZE",
    "Pushed",
    "parse_notification",
    "serialize_notification",
]

MAX_NOTIFICATION_SIZE: Final = 1 << 20  # bytes; an event with its references is a few KB
MAX_EVENT_COUNT: Final = 1000  # of one body; distribution sends one
PUSH: Final = "push"
HARBOR_PUSH: Final = "PUSH_ARTIFACT"


@dataclass(frozen=True, slots=True)
class Pushed:
    """A tag that may name another image now."""

    name: str  # of the repository
    tag: str

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"


def parse_notification(raw: bytes) -> tuple[Pushed, ...]:
    """The tags that were pushed, each once, in the order of the body."""
    if len(raw) > MAX_NOTIFICATION_SIZE:
        raise FormatError(f"notification of {len(raw)} bytes, want <= {MAX_NOTIFICATION_SIZE}")
    try:
        document = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise FormatError("notification is not JSON", offset=getattr(exc, "pos", 0)) from exc
    if not isinstance(document, dict):
        raise FormatError("notification is not an object")
    if "events" in document:
        found = _read_envelope(document["events"])
    elif "event_data" in document:
        found = _read_harbor(document)
    else:
        raise FormatError("notification has neither events nor event_data")
    return tuple(dict.fromkeys(found))


def serialize_notification(pushed: Pushed) -> bytes:
    """The same in distribution's envelope, with what is read of it and no more."""
    target = {"repository": pushed.name, "tag": pushed.tag}
    return json.dumps({"events": [{"action": PUSH, "target": target}]}).encode("utf-8")


def _read_envelope(events: object) -> Iterator[Pushed]:
    for event in _items(events, "events"):
        target = _object(event).get("target")
        if _object(event).get("action") == PUSH:
            yield from _pushed(_object(target).get("repository"), _object(target).get("tag"))


def _read_harbor(document: dict[str, object]) -> Iterator[Pushed]:
    data = _object(document["event_data"])
    name = _object(data.get("repository")).get("repo_full_name")
    for resource in _items(data.get("resources"), "resources"):
        if document.get("type") == HARBOR_PUSH:
            yield from _pushed(name, _object(resource).get("tag"))


def _items(value: object, what: str) -> Iterable[object]:
    if value is None:  # distribution leaves out an empty list
        return ()
    if not isinstance(value, list) or len(value) > MAX_EVENT_COUNT:
        raise FormatError(f"notification: {what} is not a list of at most {MAX_EVENT_COUNT}")
    return value


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _pushed(name: object, tag: object) -> Iterator[Pushed]:
    if isinstance(name, str) and isinstance(tag, str) and is_repository(name) and is_tag(tag):
        yield Pushed(name, tag)
