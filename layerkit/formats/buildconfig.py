"""`layerkit.toml`: the settings of one function, parsed and checked.

Written by people, so everything wrong is a UsageError that names the key; unknown keys too. It
does not read files. Spec: docs/design.md; templates/http/layerkit.toml shows every key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from layerkit.errors import UsageError
from layerkit.formats.layer import NONROOT

__all__ = ["FILE_NAME", "OWN_FLAGS", "BuildSettings", "parse_settings"]

FILE_NAME: Final = "layerkit.toml"
MAX_SIZE: Final = 1 << 20  # bytes

# What layerkit sets itself: a flag that fights it would break the image or its reproducibility.
OWN_FLAGS: Final = (
    "o", "C", "n", "x", "json", "tags", "trimpath", "buildvcs", "buildmode", "linkshared",
    "toolexec", "overlay", "race", "msan", "asan", "cover", "work", "installsuffix", "pkgdir",
)  # fmt: skip
_OWN_ENV: Final = (
    "CGO_ENABLED", "GOOS", "GOARCH", "GOFLAGS", "GOROOT", "GOTOOLCHAIN", "GOENV", "PATH", "HOME",
    "GOCACHE", "GOPATH", "GOMODCACHE", "LD_PRELOAD", "LD_LIBRARY_PATH",
)  # fmt: skip
_KEYS: Final = {
    "build": ("go", "package", "flags", "tags", "env"),
    "image": ("user", "entrypoint", "cmd", "env", "labels", "annotations"),
    "layers": ("deps", "code"),
    "split": ("base", "deps", "code"),
}
_GO: Final = re.compile(r"1\.\d{1,3}(?:\.\d{1,3}|(?:rc|beta)\d{1,2})?")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]*(?::[a-z_][a-z0-9_-]*)?|\d{1,10}(?::\d{1,10})?")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """All settings, with their defaults."""

    go: str = ""  # "1.26.8" is fetched if need be; "1.26" is asked of the Go that is there
    package: str = "."
    flags: tuple[str, ...] = ()
    ldflags: str = ""  # what `-ldflags=` in flags adds
    tags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    user: str = f"{NONROOT}:{NONROOT}"
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    image_env: Mapping[str, str] = field(default_factory=dict, hash=False)
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    deps: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    split: tuple[tuple[str, tuple[str, ...]], ...] = ()  # role and globs, as they are written


def parse_settings(raw: bytes) -> BuildSettings:
    """Parse a layerkit.toml; raises UsageError."""
    try:
        if len(raw) > MAX_SIZE:
            raise UsageError(f"{FILE_NAME} is over {MAX_SIZE} bytes")
        document = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"{FILE_NAME} is not TOML", cause=str(exc)) from exc
    _check_keys(document, tuple(_KEYS), "")
    tables = {name: _table(document, name) for name in _KEYS}
    for name, table in tables.items():
        _check_keys(table, _KEYS[name], name)
    build, image, layers, split = tables.values()
    flags, ldflags = _parse_flags(_list(build, "build", "flags"))
    env = _map(build, "build", "env")
    for name in env:
        if name in _OWN_ENV:
            raise UsageError(f"{FILE_NAME}: build.env.{name} is set by layerkit itself")
    image_env = _map(image, "image", "env")
    for name in [*env, *image_env]:
        if not _ENV_NAME.fullmatch(name):
            raise UsageError(f"{FILE_NAME}: {name[:80]!r} is not a name of a variable")
    return BuildSettings(
        go=_match(build, "build", "go", _GO, "", "a Go release, as in 1.26.8"),
        package=_parse_package(build),
        flags=flags,
        ldflags=ldflags,
        tags=_list(build, "build", "tags"),
        env=env,
        user=_match(image, "image", "user", _USER, BuildSettings().user, "a user, as in 65532"),
        entrypoint=_list(image, "image", "entrypoint"),
        cmd=_list(image, "image", "cmd"),
        image_env=image_env,
        labels=_map(image, "image", "labels"),
        annotations=_map(image, "image", "annotations"),
        deps=_list(layers, "layers", "deps"),
        code=_list(layers, "layers", "code"),
        split=tuple((role, _list(split, "split", role)) for role in split),
    )


def _check_keys(table: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    prefix = f"{where}." if where else ""
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise UsageError(
            f"{FILE_NAME}: unknown key {', '.join(prefix + key for key in unknown)}",
            hint=f"known here: {', '.join(prefix + key for key in known)}",
        )


def _table(document: Mapping[str, object], name: str) -> dict[str, object]:
    value = document.get(name, {})
    if not isinstance(value, dict):
        raise UsageError(f"{FILE_NAME}: {name} is not a table", hint=f"write [{name}]")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _list(table: Mapping[str, object], where: str, key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(_is_text(item) and item for item in value):
        raise UsageError(f"{FILE_NAME}: {where}.{key} is not a list of strings")
    return tuple(value)


def _map(table: Mapping[str, object], where: str, key: str) -> dict[str, str]:
    value = table.get(key, {})
    if not isinstance(value, dict) or not all(_is_text(item) for item in value.values()):
        raise UsageError(f"{FILE_NAME}: {where}.{key} is not a table of strings")
    return dict(sorted(value.items()))


def _match(
    table: Mapping[str, object],
    where: str,
    key: str,
    pattern: re.Pattern[str],
    default: str,
    want: str,
) -> str:
    value = table.get(key, default)
    if value == "" or (isinstance(value, str) and pattern.fullmatch(value)):
        return value
    raise UsageError(f"{FILE_NAME}: {where}.{key} is {value!r}, want {want}")


def _parse_package(build: Mapping[str, object]) -> str:
    value = build.get("package", ".")
    if isinstance(value, str) and (value == "." or value.startswith("./")) and "..." not in value:
        return value
    raise UsageError(f"{FILE_NAME}: build.package is {value!r}, want one folder, as in ./cmd/hello")


def _parse_flags(flags: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """(flags, what `-ldflags=` adds); a flag and its value are one string with `=`."""
    kept, ldflags = [], []
    for flag in flags:
        name, equals, value = flag.partition("=")
        bare = name.lstrip("-")
        if not flag.startswith("-") or bare in OWN_FLAGS:
            why = "is set by layerkit itself" if bare in OWN_FLAGS else "does not start with '-'"
            raise UsageError(
                f"{FILE_NAME}: build.flags: {flag[:80]!r} {why}", hint="write -name=value"
            )
        if bare == "ldflags" and equals:
            ldflags.append(value)
        else:
            kept.append(flag)
    return tuple(kept), " ".join(ldflags)
