"""References: ``[host/]repository[:tag][@digest]``, parsed in this one place.

A reference comes from people, so a bad one is a UsageError. The first part of the name is a host
only if it looks like one (a dot, a port, or ``localhost``), as docker and containerd have it; no
host is ever made up. Spec: OCI distribution-spec 1.1 "Pulling manifests" for the name grammar.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from layerkit.digest import Digest
from layerkit.errors import FormatError, UsageError

__all__ = ["DEFAULT_TAG", "Reference", "is_loopback", "is_repository", "is_tag"]

DEFAULT_TAG: Final = "latest"
MAX_NAME_SIZE: Final = 255  # characters of host and repository together, as registries count
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?")
_DOCKER_HUB: Final = ("docker.io", "index.docker.io")
_HINT: Final = "write [host/]name[:tag][@sha256:digest], as in hello:v1"


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference; `host`, `tag` are "" and `digest` is None where not given."""

    host: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse what a user wrote; raises UsageError."""
        rest, at, raw_digest = text.partition("@")
        digest = _parse_digest(raw_digest, text) if at else None
        name, tag = rest, ""
        colon = rest.rfind(":")
        if colon > rest.rfind("/"):
            name, tag = rest[:colon], rest[colon + 1 :]
            if not is_tag(tag):
                raise _bad(text, f"tag {tag[:140]!r} is not letters, digits, '_', '.', '-'")
        host, repository = _split_host(name)
        if host and not _HOST.fullmatch(host):
            raise _bad(text, f"host {host[:80]!r} is not a name with an optional port")
        if not is_repository(repository):
            raise _bad(text, f"name {repository[:80]!r} is not lower case letters and digits")
        if len(name) > MAX_NAME_SIZE:
            raise _bad(text, f"name has {len(name)} characters, want <= {MAX_NAME_SIZE}")
        return cls(host, repository, tag, digest)

    @property
    def name(self) -> str:
        """Host and repository, without tag and digest."""
        return f"{self.host}/{self.repository}" if self.host else self.repository

    @property
    def tagged(self) -> Reference:
        """With the default tag where there is neither tag nor digest."""
        if self.tag or self.digest is not None:
            return self
        return replace(self, tag=DEFAULT_TAG)

    @property
    def registry_url(self) -> str:
        """The registry that the reference names; "" without a host. On this machine it is asked
        plainly first, and by TLS if it turns out to speak that (edges/loopback); docker's own is at
        another address than it is named by."""
        if not self.host:
            return ""
        if self.host in _DOCKER_HUB:
            return "https://registry-1.docker.io"
        name = urlsplit(f"//{self.host}").hostname or ""
        return f"{'http' if is_loopback(name) else 'https'}://{self.host}"

    @property
    def registry_name(self) -> str:
        """The repository as its registry knows it: docker's own images are in `library`."""
        is_short = self.host in _DOCKER_HUB and "/" not in self.repository
        return f"library/{self.repository}" if is_short else self.repository

    @property
    def full_name(self) -> str:
        """The name with the registry that engines assume: what kubelet and containerd look for."""
        if self.host:
            return self.name
        path = self.repository if "/" in self.repository else f"library/{self.repository}"
        return f"docker.io/{path}"

    def pinned(self, digest: Digest) -> Reference:
        """``name@digest``: what a result line shows."""
        return replace(self, tag="", digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.name}{tag}{digest}"


def is_repository(text: str) -> bool:
    """Is `text` a repository name by the OCI grammar?"""
    return len(text) <= MAX_NAME_SIZE and _REPOSITORY.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Is `text` a tag by the OCI grammar?"""
    return _TAG.fullmatch(text) is not None


def is_loopback(host: str) -> bool:
    """This machine's own address? 127.example.org, which begins like one, is anybody's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split_host(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return "", name


def _parse_digest(raw_digest: str, text: str) -> Digest:
    try:
        digest = Digest.parse(raw_digest)
    except FormatError as exc:
        raise _bad(text, exc.message) from exc
    if digest.algorithm != "sha256":
        raise _bad(text, "digest is not sha256")
    return digest


def _bad(text: str, cause: str) -> UsageError:
    return UsageError(f"{text[:120]!r} is not a reference", cause=cause, hint=_HINT)
