"""The verbs of a server: serve, and token with add, list and remove."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerkit.cli.common import (
    default_cache,
    docker_config,
    document_of,
    json_option,
    option,
    state_of,
    verb,
)
from layerkit.errors import UsageError

if TYPE_CHECKING:
    from layerkit.edges.http import Limits, ServerOptions, TlsFiles

__all__ = ["add_serving_verbs", "tls_files"]

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}


def add_serving_verbs(group: click.Group) -> None:
    """Register the verbs of this module."""
    verb(group, "serve")(serve)
    tokens = click.Group("token", help="Make, list and take back the tokens of a server.")
    verb(tokens, "add")(token_add)
    verb(tokens, "list")(token_list)
    verb(tokens, "remove")(token_remove)
    group.add_command(tokens)


class _Size(click.ParamType[float]):
    """A number with k, M or G behind it, of 1000."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value).strip().lower()
        unit = text[-1:] if text[-1:] in _UNITS else ""
        number = text.removesuffix(unit) if unit else text
        if not (number.replace(".", "", 1).isascii() and number.replace(".", "", 1).isdigit()):
            self.fail(f"{value!r} is not a size: write 500, 20k or 1.5M", param, ctx)
        return float(number) * _UNITS[unit]


_file = click.Path(dir_okay=False, path_type=Path)
_folder = click.Path(file_okay=False, path_type=Path)


@click.argument("storage", metavar="LAYOUT|URL")
@option(
    "--listen",
    default="127.0.0.1:7420",
    show_default=True,
    metavar="ADDR",
    help="Where to listen; port 0 takes a free one.",
)
@option("--token-file", type=_file, help="Ask for one of these tokens ('layerkit token add').")
@option("--open", "open_to_all", is_flag=True, help="Serve everyone who reaches ADDR, unasked.")
@option("--tls-cert", type=_file, help="Speak TLS: the certificate chain, PEM.")
@option("--tls-key", type=_file, help="The certificate's key, PEM.")
@option("--client-ca", type=_file, help="Let in only who shows a certificate of this CA, PEM.")
@option("--workers", type=int, default=1, show_default=True, help="Processes that serve.")
@option(
    "--request-rate", type=_Size(), default=0, help="Requests a second for a token, or address."
)
@option("--byte-rate", type=_Size(), default=0, help="Bytes a second for a token, or an address.")
@option(
    "--max-connections", type=int, default=8192, show_default=True, help="Open at once, a worker."
)
@option(
    "--max-address-connections",
    type=int,
    default=0,
    help="Open at once from one address, a worker.  [default: as many]",
)
@option("--log-format", type=click.Choice(["json", "text"]), help="Write a line for each request.")
@option(
    "--drain",
    type=float,
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="After SIGTERM: /readyz says 503 so long before the port closes.",
)
@option("--repository", "repositories", multiple=True, help="Of a registry: serve only this one.")
@option(
    "--cache",
    type=_folder,
    default=lambda: default_cache("serve"),
    help="For what is fetched or made.",
)
@option("--made", default="", metavar="DIR|URL", help="For what servers make, to share it.")
@option("--made-size", type=_Size(), default="1G", show_default=True, help="Bytes of what is made.")
@option(
    "--memory",
    type=_Size(),
    default="800M",
    show_default=True,
    help="Bytes of what was read and made in memory, of all workers.",
)
@option(
    "--prepare",
    type=click.IntRange(0, 100),
    default=3,
    show_default=True,
    metavar="COUNT",
    help="Versions before a new one from which updates are made at once.",
)
@option(
    "--cpu-budget",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="A minute, for a token's updates that are not made yet; 0: no limit.",
)
@option("--storage-ca", type=_file, help="The CA of a registry, PEM.")
@option("--token-realm", "realms", multiple=True, help="A registry's token service, by host.")
@click.pass_context
def serve(context: click.Context, /, storage: str, **facts: Any) -> None:
    """Serve the images of an OCI LAYOUT folder, a registry (https://…) or a bucket (s3://…).

    Prints its URL when ready. SIGTERM ends it: what runs is finished.
    """
    from layerkit.edges.storage import open_storage
    from layerkit.jobs.serve import SourceOptions
    from layerkit.jobs.serve import serve as run_serve

    console = state_of(context).console
    opened = functools.partial(
        open_storage,
        storage,
        repositories=facts["repositories"],
        cache=facts["cache"],
        made=facts["made"],
        made_size=int(facts["made_size"]),
        config=docker_config(),
        ca=facts["storage_ca"],
        realms=facts["realms"],
    )
    with contextlib.suppress(SystemExit):  # SIGTERM before the server ran
        run_serve(
            opened,
            _server_options(facts),
            console.result,
            SourceOptions(
                prepare_count=facts["prepare"],
                budget_seconds=facts["cpu_budget"],
                memory_size=int(facts["memory"]),
            ),
        )
    console.say("stopped")


def _server_options(facts: dict[str, Any]) -> ServerOptions:
    from layerkit.edges.http import ServerOptions

    return ServerOptions(
        listen=facts["listen"],
        tls=tls_files(facts),
        token_file=facts["token_file"],
        open_to_all=facts["open_to_all"],
        worker_count=facts["workers"],
        log_format=facts["log_format"] or "",
        drain_seconds=max(0.0, facts["drain"]),
        limits=_limits(facts),
    )


def _limits(facts: dict[str, Any]) -> Limits:
    from layerkit.edges.http import Limits

    return Limits(
        request_rate=facts["request_rate"],
        byte_rate=facts["byte_rate"],
        max_connections=max(1, facts["max_connections"]),
        max_address_connections=max(0, facts["max_address_connections"]),
    )


def tls_files(facts: dict[str, Any]) -> TlsFiles | None:
    """What `--tls-cert`, `--tls-key` and, where a verb has it, `--client-ca` name."""
    from layerkit.edges.http import TlsFiles

    cert, key, client_ca = facts["tls_cert"], facts["tls_key"], facts.get("client_ca")
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise UsageError(
            "TLS takes a certificate and its key", hint="give both --tls-cert and --tls-key"
        )
    return TlsFiles(cert, key, client_ca)


_token_file_option = option(
    "--file",
    "path",
    type=_file,
    required=True,
    envvar="LAYERKIT_TOKEN_FILE",
    help="The token file.",
)


@click.argument("name")
@_token_file_option
@option("--pull", multiple=True, metavar="PATTERN", help="Repositories to pull.  [default: *]")
@option("--push", multiple=True, metavar="PATTERN", help="Repositories to push.  [default: none]")
@click.pass_context
def token_add(
    context: click.Context, name: str, path: Path, pull: tuple[str, ...], push: tuple[str, ...]
) -> None:
    """Make a token called NAME and print it: only its hash is kept.

    PATTERN is as in a shell, over repository names: 'team/*'. A running server takes it up at
    once.
    """
    import time

    from layerkit.edges.disk import Disk
    from layerkit.edges.tokens import add_token

    day = time.strftime("%Y-%m-%d", time.gmtime())
    text = add_token(path, name, pull or ("*",), push, day=day, disk=Disk())
    state_of(context).console.result(text)


@_token_file_option
@json_option
@click.pass_context
def token_list(context: click.Context, path: Path) -> None:
    """List names and scopes; tokens cannot be shown again."""
    from layerkit.edges.tokens import read_token_file

    state = state_of(context)
    tokens = read_token_file(path)
    if state.as_json:
        entries = [{**document_of(token.caller), "created": token.created} for token in tokens]
        state.console.document({"tokens": entries})
        return
    for token in tokens:
        pull, push = (",".join(scope) or "-" for scope in (token.caller.pull, token.caller.push))
        state.console.result(f"{token.caller.id}  pull {pull}  push {push}  {token.created}")


@click.argument("name")
@_token_file_option
@click.pass_context
def token_remove(context: click.Context, name: str, path: Path) -> None:
    """Take the token NAME back. Running servers stop letting it in at once."""
    from layerkit.edges.disk import Disk
    from layerkit.edges.tokens import remove_token

    remove_token(path, name, Disk())
    state_of(context).console.say(f"removed {name}")
