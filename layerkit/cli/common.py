"""What every verb shares: options with environment twins, -q and -v, --json, results as JSON."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from layerkit.console import Console
from layerkit.errors import LayerkitError, NotFoundError

__all__ = [
    "DEFAULT_LAYOUT",
    "PREFIX",
    "State",
    "default_cache",
    "default_store",
    "docker_config",
    "document_of",
    "error_document",
    "json_option",
    "must_exist",
    "option",
    "quota_option",
    "state_of",
    "store_option",
    "verb",
]

PREFIX = "LAYERKIT_"
DEFAULT_LAYOUT = Path("layout")  # where build writes and look verbs look, unless told
F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(slots=True)
class State:
    """What one command line carries through click."""

    console: Console = dataclasses.field(default_factory=Console)
    as_json: bool = False


def state_of(context: click.Context) -> State:
    return context.ensure_object(State)


def option(*names: str, **facts: Any) -> Callable[[F], F]:
    """A click option whose environment twin is LAYERKIT_ and its long name."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    facts.setdefault("envvar", PREFIX + long[2:].upper().replace("-", "_"))
    return click.option(*names, **facts)


def default_cache(of: str) -> Path:
    """Where what can be made or fetched again is kept, when nobody says; `of` is a verb."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "layerkit" / of


def docker_config() -> Path | None:
    """The file with docker's logins where it is not at its usual place."""
    folder = os.environ.get("DOCKER_CONFIG")
    return Path(folder) / "config.json" if folder else None


def default_store() -> Path:
    """Where a node keeps its chunks when nobody says: the system's place, or the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/layerkit")
    state_home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(state_home) / "layerkit"


store_option = option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_store,
    show_default="/var/lib/layerkit for root, else ~/.local/state/layerkit",
    help="The node's store.",
)


def must_exist(store: Path) -> None:
    """A verb that only looks does not make a store."""
    if not store.is_dir():
        raise NotFoundError(f"store {store} does not exist", hint="name another one with --store")


def _parse_quota(_: click.Context, __: click.Parameter, value: str | None) -> int:
    from layerkit.jobs.agent.settings import parse_size

    return parse_size(value) if value else 0


quota_option = option(
    "--quota",
    metavar="SIZE",
    callback=_parse_quota,
    help="What the store may take, as 10GiB: images not used for longest go.  [default: no limit]",
)


def _set_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        state_of(context).console.quiet = True


def _set_verbose(context: click.Context, _: click.Parameter, value: int) -> None:
    if value:
        state_of(context).console.verbose = value
        level = logging.DEBUG if value >= 2 else logging.INFO
        logging.basicConfig(level=level, format="%(name)s: %(message)s")


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    state_of(context).as_json = value


def json_option(function: F) -> F:
    """``--json``: one document on stdout instead of a table."""
    return option(
        "--json", is_flag=True, expose_value=False, callback=_set_json, help="Print one document."
    )(function)


def verb(
    group: click.Group, name: str, **facts: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Register a verb; -q and -v come last in its help."""

    def register(function: Callable[..., Any]) -> click.Command:
        command = group.command(name, **facts)(function)
        command.params += _talk_options()
        return command

    return register


def _talk_options() -> list[click.Parameter]:
    quiet = click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        callback=_set_quiet,
        envvar=f"{PREFIX}QUIET",
        help="Say nothing but errors.",
    )
    verbose = click.Option(
        ["-v", "--verbose"],
        count=True,
        expose_value=False,
        callback=_set_verbose,
        envvar=f"{PREFIX}VERBOSE",
        help="Say more; -vv shows tracebacks.",
    )
    return [quiet, verbose]


def error_document(error: LayerkitError) -> dict[str, object]:
    """An error as the chunk server would answer it."""
    entry = {"code": error.code, "message": error.message, "detail": error.cause}
    return {"errors": [entry]}


def document_of(value: Any) -> dict[str, Any]:
    """A result's dataclass as a JSON document; its field names are the glossary's words."""
    plain = {name.name: _plain(getattr(value, name.name)) for name in dataclasses.fields(value)}
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and hasattr(value, "algorithm"):
        return str(value)
    if dataclasses.is_dataclass(value):
        return document_of(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
