"""What an agent is told: a TOML file, and options of the command line that win over it.

A bad value is a UsageError that names its key. What SIGHUP may change: `RELOADABLE`; the rest is
fixed while the agent runs.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from layerkit.edges.engine import ENGINES
from layerkit.edges.versions import check_name
from layerkit.errors import NotFoundError, StoreError, UsageError
from layerkit.formats.oci import parse_platform
from layerkit.formats.reference import Reference

__all__ = ["RELOADABLE", "Server", "Settings", "load_settings", "parse_size"]

DEFAULT_KEEP: Final = 3
DEFAULT_PULLS: Final = 2  # at once: each decodes on a core
DEFAULT_POLLS: Final = 512  # connections that wait at once, over all servers
DEFAULT_POLL_SECONDS: Final = 30.0  # between two looks where a server has no long poll
MAX_TOKEN_SIZE: Final = 4096
MIN_SECRET_SIZE: Final = 16  # characters
RELOADABLE: Final = ("servers", "watch", "keep", "poll_seconds")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Server:
    """A chunk server, the token is shown to it alone; or a registry, which has docker's logins."""

    url: str
    token: str = field(default="", repr=False)
    is_registry: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it, checked."""

    store: Path
    servers: tuple[Server, ...]
    socket: Path | None = None
    watch: tuple[str, ...] = ()
    keep: int = DEFAULT_KEEP
    quota: int = 0  # bytes; 0: no limit
    rootfs: Path | None = None
    layouts: Path | None = None
    load: tuple[str, ...] = ()
    metrics: str = ""
    events: str = ""  # where registries tell of pushes
    events_secret: str = field(default="", repr=False)
    pulls: int = DEFAULT_PULLS
    polls: int = DEFAULT_POLLS
    poll_seconds: float = DEFAULT_POLL_SECONDS
    platform: str = ""
    ca: Path | None = None  # whom to trust; None: the system's authorities
    client_cert: Path | None = None
    client_key: Path | None = None
    verify: tuple[Path, ...] = ()  # public keys, one of which must have signed an image
    token_realms: tuple[str, ...] = ()  # hosts of token services that get a registry's credentials
    docker_config: Path | None = None  # docker's config.json, if not the usual one
    docker: str = ""
    containerd: str = ""
    containerd_namespace: str = ""
    config: Path | None = None

    @property
    def folders(self) -> Path | None:
        """Where versions become folders, if they do."""
        return self.rootfs or self.layouts


def parse_size(text: str) -> int:
    """``10GiB``, ``500 MB``, ``4096`` -> bytes; K, M, G without "i" are powers of 1000."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UsageError(f"{text[:40]!r} is not a size", hint="write 10GiB, 500MB or bytes")
    unit = (found[2] or "").lower()
    base = 1024 if unit.endswith("i") else 1000
    return int(float(found[1]) * base ** (" kmgt".index(unit[0]) if unit else 0))


def load_settings(options: Mapping[str, Any], default_store: Path) -> Settings:
    """Settings from `options` (None and empty ones are not given) over the file `config`."""
    given = {key: value for key, value in options.items() if value not in (None, (), "")}
    config = given.get("config")
    values: dict[str, Any] = {"store": default_store, **_read_file(config), **given}
    known = {item.name for item in fields(Settings)} - {"events_secret"}
    known |= {"token_file", "events_secret_file"}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise UsageError(
            f"{unknown[0][:80]!r} is no setting of an agent",
            cause=f"in {config}",
            hint=f"there are {', '.join(sorted(known - {'config'}))}",
        )
    token = _read_token(values.pop("token_file", None))
    secret_file = values.pop("events_secret_file", None)
    secret = _read_token(secret_file)
    if secret_file and len(secret) < MIN_SECRET_SIZE:
        raise UsageError(
            f"{secret_file} does not hold a secret of {MIN_SECRET_SIZE} characters or more",
            hint=f"make one: openssl rand -hex 32 > {secret_file}",
        )
    raw_servers = values.pop("servers", ())
    made: dict[str, Any] = {"servers": _parse_servers(raw_servers, token), "events_secret": secret}
    for key, value in values.items():
        made[key] = _PARSERS[key](key, value)
    if made.get("rootfs") and made.get("layouts"):
        raise UsageError("an agent writes a rootfs or layouts, not both")
    for ref in () if made["servers"] else made.get("watch", ()):
        if not Reference.parse(ref).host:
            raise UsageError(
                f"{ref} names no registry",
                hint="write registry.example/name:tag, or name a chunk server with --server URL",
            )
    if token and not made["servers"]:
        raise UsageError(
            "a token is for chunk servers, and none is named",
            hint="log in to a registry with 'docker login', or name a --server",
        )
    return Settings(**made)


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError as exc:
        raise NotFoundError(f"{path} does not exist") from exc
    except OSError as exc:
        raise StoreError(f"cannot read {path}", cause=str(exc.strerror)) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path} is not TOML", cause=str(exc)) from exc


def _read_token(path: object) -> str:
    if not path:
        return ""
    try:
        with open(str(path), encoding="ascii") as file:
            token = file.read(MAX_TOKEN_SIZE + 1).strip()
    except FileNotFoundError as exc:
        raise NotFoundError(f"token file {path} does not exist") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"token file {path} cannot be read", cause=str(exc)) from exc
    if not token or len(token) > MAX_TOKEN_SIZE or not token.isprintable() or " " in token:
        raise UsageError(f"token file {path} does not hold one token")
    return token


def _parse_servers(raw: object, token: str) -> tuple[Server, ...]:
    if isinstance(raw, str) or not isinstance(raw, list | tuple):
        raise UsageError("servers: got no list", hint='write servers = ["http://host:7420"]')
    found = []
    for entry in raw:
        table = {"url": entry} if isinstance(entry, str) else entry
        if not isinstance(table, dict) or table.keys() - {"url", "token_file"}:
            raise UsageError("servers: an entry is no URL and no table of url and token_file")
        url = str(table.get("url", ""))
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise UsageError(f"{url[:120]!r} is not a server URL", hint="write http://host:port")
        if parts.username or parts.password:
            raise UsageError("a server URL may not hold a password", hint="use --token-file")
        own = table.get("token_file")
        found.append(Server(url.rstrip("/"), _read_token(own) if own else token))
    return tuple(dict.fromkeys(found))


# --- one parser a key ----------------------------------------------------------------------------


def _path(key: str, value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise UsageError(f"{key}: got {value!r}, want a path")
    return Path(value).absolute()


def _file(key: str, value: object) -> Path:
    path = _path(key, value)
    if not path.is_file():
        raise NotFoundError(f"{key}: {path} does not exist", hint="name a file in PEM")
    return path


def _files(key: str, value: object) -> tuple[Path, ...]:
    listed = [value] if isinstance(value, str | Path) else value
    if not isinstance(listed, list | tuple):
        raise UsageError(f"{key}: got {value!r}, want a list of files")
    return tuple(_file(key, one) for one in listed)


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{key}: got {value!r}, want a text")
    return value


def _count(least: int) -> Callable[[str, object], int]:
    def parse(key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1 << 20:
            raise UsageError(f"{key}: got {value!r}, want a number of at least {least}")
        return value

    return parse


def _seconds(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.1 <= value <= 86400:
        raise UsageError(f"{key}: got {value!r}, want seconds from 0.1 to 86400")
    return float(value)


def _bytes(key: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return parse_size(_text(key, value))


def _texts(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{key}: got {value!r}, want a list of texts")
    return tuple(dict.fromkeys(value))


def _refs(key: str, value: object) -> tuple[str, ...]:
    refs = [Reference.parse(text).tagged for text in _texts(key, value)]
    for ref in refs:
        if ref.digest is not None:
            raise UsageError(f"{ref} never changes: it is named by its digest", hint="pull it")
        check_name(ref)
    return tuple(dict.fromkeys(map(str, refs)))


def _engines(key: str, value: object) -> tuple[str, ...]:
    found = _texts(key, value)
    for kind in found:
        if kind not in ENGINES:
            raise UsageError(f"{kind[:40]!r} is no engine", hint=f"name {' or '.join(ENGINES)}")
    return found


def _platform(key: str, value: object) -> str:
    return str(parse_platform(_text(key, value)))


def _address(key: str, value: object) -> str:
    text = _text(key, value)
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(f"{key}: {text[:80]!r} is not an address", hint="write 127.0.0.1:9464")
    return f"{host or '127.0.0.1'}:{port}"


_PARSERS: Final[Mapping[str, Callable[[str, object], object]]] = {
    "store": _path,
    "socket": _path,
    "rootfs": _path,
    "layouts": _path,
    "config": _path,
    "ca": _file,
    "client_cert": _file,
    "client_key": _file,
    "verify": _files,
    "token_realms": _texts,
    "docker_config": _path,
    "watch": _refs,
    "keep": _count(1),
    "pulls": _count(1),
    "polls": _count(1),
    "poll_seconds": _seconds,
    "quota": _bytes,
    "load": _engines,
    "platform": _platform,
    "metrics": _address,
    "events": _address,
    "docker": _text,
    "containerd": _text,
    "containerd_namespace": _text,
}
