"""The names that an agent keeps, and their durable record: `agent/state.json` in the store.

The record is replaced whole by one rename (edges.disk). It holds what cannot be found again from
the store and the folders: what is watched, in which order versions came, what engines got. One that
is damaged is moved aside and told; the agent then starts from its configuration, and the images are
still in the store. Spec: docs/agent.md "What is on the disk".
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from layerkit.digest import Digest
from layerkit.edges.disk import Disk
from layerkit.edges.versions import CURRENT, check_name
from layerkit.errors import FormatError, NotFoundError, StoreError, UsageError
from layerkit.formats.reference import Reference

__all__ = [
    "RECORD_NAME",
    "Name",
    "Names",
    "Record",
    "Version",
    "parse_record",
    "read_record",
    "serialize_record",
]

RECORD_NAME: Final = "state.json"
KIND: Final = "layerkit-agent"
MAJOR: Final = 1
MAX_RECORD_SIZE: Final = 64 << 20
CONFIG: Final = "config"  # watched because the configuration says so
API: Final = "api"  # watched because somebody asked the agent to
# what the record's values must be
_KINDS: Final[Mapping[str, type]] = {
    **dict.fromkeys(("link", "watched", "config", "manifest"), str),
    **dict.fromkeys(("pinned", "evicted", "leaving"), bool),
    **dict.fromkeys(("moved_size", "whole_size"), int),
    **dict.fromkeys(("pulled_at", "last_success", "seconds"), float),
    "handed": list,
}
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Version:
    """An image that a name had. `handed`: engines that have it; `evicted`: the store has it no
    more, and its folder goes, too."""

    digest: str
    pulled_at: float
    config: str = ""
    manifest: str = ""
    handed: list[str] = field(default_factory=list)
    pinned: bool = False
    evicted: bool = False


@dataclass(slots=True)
class Name:
    """A reference with a tag; its versions, the current one first. `watched` is by whom, or ""."""

    ref: str
    link: str = CURRENT
    watched: str = ""
    versions: list[Version] = field(default_factory=list)
    last_success: float = 0.0
    last_error: dict[str, object] | None = None
    moved_size: int = 0  # bytes of the last pull that brought something
    whole_size: int = 0
    seconds: float = 0.0
    leaving: bool = False  # is being removed: goes on after a restart

    @property
    def reference(self) -> Reference:
        return Reference.parse(self.ref)

    @property
    def current(self) -> str:
        return self.versions[0].digest if self.versions else ""

    def list_have(self) -> tuple[Digest, ...]:
        """What an update may build on, the current image first."""
        return tuple(Digest.parse(one.digest) for one in self.versions if not one.evicted)

    def add(self, digest: str, now: float) -> Version:
        """`digest` is the current version from now on."""
        found = next((one for one in self.versions if one.digest == digest), None)
        version = found or Version(digest, now)
        version.evicted = False
        self.versions = [version, *(one for one in self.versions if one is not version)]
        return version

    def list_surplus(self, keep: int) -> list[Version]:
        """Versions beyond the newest `keep`, and evicted ones; none that is pinned or current."""
        return [
            version
            for at, version in enumerate(self.versions)
            if at and (at >= keep or version.evicted) and not version.pinned
        ]


@dataclass(slots=True)
class Record:
    """All of it. `unwatched`: names of the configuration that somebody asked not to watch."""

    names: dict[str, Name] = field(default_factory=dict)
    unwatched: list[str] = field(default_factory=list)


class Names:
    """The names by reference, and the rules of watching."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def __iter__(self) -> Iterator[Name]:
        return iter(list(self.record.names.values()))

    def find(self, ref: str) -> Name | None:
        return self.record.names.get(ref)

    def get(self, ref: str) -> Name:
        found = self.find(ref)
        if found is None or found.leaving:
            raise NotFoundError(f"{ref} is no name of this agent")
        return found

    def add(self, ref: str) -> Name:
        """The name `ref`, new if it is."""
        found = self.find(ref)
        if found is None:
            reference = Reference.parse(ref)
            check_name(reference)
            found = self.record.names[ref] = Name(ref, self._choose_link(reference))
        elif found.leaving:
            raise UsageError(f"{ref} is being removed", hint="try again in a moment")
        return found

    def _choose_link(self, ref: Reference) -> str:
        """`current`; for a further tag of the same repository `current-TAG`. It stays."""
        taken = {one.link for one in self if one.reference.name == ref.name}
        return f"{CURRENT}-{ref.tag}" if CURRENT in taken else CURRENT

    def forget(self, name: Name) -> None:
        """Nothing is known of it any more."""
        self.record.names.pop(name.ref, None)

    def watch(self, ref: str) -> Name:
        """Watch because somebody asks."""
        name = self.add(ref)
        name.watched = name.watched or API
        self.record.unwatched = [one for one in self.record.unwatched if one != ref]
        return name

    def unwatch(self, ref: str) -> Name:
        """Do not watch any more, also if the configuration says so; versions stay."""
        name = self.get(ref)
        if name.watched == CONFIG and ref not in self.record.unwatched:
            self.record.unwatched.append(ref)
        name.watched = ""
        return name

    def configure(self, wanted: tuple[str, ...]) -> None:
        """What the configuration says now."""
        unwatched = [ref for ref in self.record.unwatched if ref in wanted]
        self.record.unwatched = unwatched
        for ref in wanted:
            found = self.find(ref)
            if ref in unwatched or (found is not None and found.leaving):
                continue
            self.add(ref).watched = CONFIG
        for name in self:
            if name.watched == CONFIG and name.ref not in wanted:
                name.watched = ""

    def list_sharing(self, name: Name) -> set[str]:
        """Digests whose folders other tags of the repository use, too."""
        own = name.reference.name
        return {
            version.digest
            for one in self
            if one is not name and one.reference.name == own
            for version in one.versions
        }


# --- the record on the disk ----------------------------------------------------------------------


def read_record(folder: Path, disk: Disk) -> Record:
    """The record in `folder`; new where there is none, or a damaged one (told, kept aside)."""
    path = folder / RECORD_NAME
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_RECORD_SIZE + 1)
        return parse_record(raw)
    except FileNotFoundError:
        return Record()
    except OSError as exc:
        raise StoreError(f"cannot read {path}", cause=str(exc.strerror)) from exc
    except FormatError as exc:
        aside = path.with_suffix(".damaged")
        _log.error("%s is damaged, moved to %s: %s (%s)", path, aside, exc.message, exc.cause)
        disk.rename(path, aside)
        return Record()


def serialize_record(record: Record) -> bytes:
    document = {
        "kind": KIND,
        "major": MAJOR,
        "names": [asdict(record.names[ref]) for ref in sorted(record.names)],
        "unwatched": sorted(record.unwatched),
    }
    return json.dumps(document, separators=(",", ":")).encode()


def parse_record(raw: bytes) -> Record:
    """Raises FormatError, whatever the bytes."""
    if len(raw) > MAX_RECORD_SIZE:
        raise FormatError(f"record of the agent is over {MAX_RECORD_SIZE} bytes")
    try:
        document = json.loads(raw)
        if document["kind"] != KIND or document["major"] != MAJOR:
            raise FormatError(f"not a record of an agent of major {MAJOR}")
        names = [_parse_name(entry) for entry in document["names"]]
        unwatched = [str(ref) for ref in document["unwatched"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as exc:
        raise FormatError("record of the agent does not parse", cause=str(exc)[:200]) from exc
    return Record({name.ref: name for name in names}, unwatched)


def _parse_name(entry: Mapping[str, Any]) -> Name:
    versions = [Version(**version) for version in entry["versions"]]
    name = Name(**{**entry, "versions": versions})
    check_name(name.reference)
    for value in (name, *versions):
        for field_, kind in _KINDS.items():
            if not isinstance(getattr(value, field_, kind()), kind):
                raise TypeError(f"{field_} is no {kind.__name__}")
    for version in versions:
        Digest.parse(version.digest)
    return name
