"""The verb hook."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerkit.cli.common import (
    docker_config,
    option,
    state_of,
    verb,
)
from layerkit.cli.serving import tls_files
from layerkit.errors import UsageError

if TYPE_CHECKING:
    from layerkit.edges.http import ServerOptions

__all__ = ["add_hook_verb"]


def add_hook_verb(group: click.Group) -> None:
    """Register the verb of this module."""
    verb(group, "hook")(hook)


def _default_queue() -> Path:
    """Where the work that is to be done lies, when nobody says."""
    if os.geteuid() == 0:
        return Path("/var/lib/layerkit/hook")
    state_home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(state_home) / "layerkit" / "hook"


_file = click.Path(dir_okay=False, path_type=Path)


@option("--registry", required=True, metavar="URL", help="The registry to work for.")
@option(
    "--listen",
    default="127.0.0.1:7430",
    show_default=True,
    metavar="ADDR",
    help="Where notifications come to, at /events; port 0 takes a free one.",
)
@option("--secret-file", type=_file, help="Ask for the secret in this file.")
@option("--open", "open_to_all", is_flag=True, help="Hear everyone who reaches ADDR, unasked.")
@option(
    "--repositories",
    multiple=True,
    metavar="PATTERN",
    help="Work only for these, as 'team/*'.  [default: all]",
)
@option(
    "--queue",
    type=click.Path(file_okay=False, path_type=Path),
    default=_default_queue,
    show_default="/var/lib/layerkit/hook for root, else ~/.local/state/layerkit/hook",
    help="The folder for what is to be done.",
)
@option(
    "--deltas",
    type=click.IntRange(0, 16),
    default=3,
    show_default=True,
    metavar="COUNT",
    help="Versions before a new one from which updates are made.",
)
@option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Images at once.")
@option(
    "--scan",
    type=click.FloatRange(0),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks at all tags, for what was not told; 0: none.",
)
@option(
    "--tell",
    "agents",
    multiple=True,
    metavar="URL",
    help="Agents (--events) to tell when an image's updates are there.",
)
@option("--tell-secret-file", type=_file, help="What these ask for.")
@option("--tls-cert", type=_file, help="Speak TLS: the certificate chain, PEM.")
@option("--tls-key", type=_file, help="The certificate's key, PEM.")
@option("--ca", type=_file, help="The registry's CA, PEM.")
@option("--token-realm", "realms", multiple=True, help="A registry's token service, by host.")
@option("--log-format", type=click.Choice(["json", "text"]), help="Write a line for each request.")
@click.pass_context
def hook(context: click.Context, /, **facts: Any) -> None:
    """Make chunks and updates for each image that is pushed to a registry.

    The registry sends its notifications here. What is made refers to the image, which stays as it
    is. Prints its URL when ready. SIGTERM ends it; what is not done yet is done by the next one.
    """
    from layerkit.jobs.hook import HookSettings, run_hook

    settings = HookSettings(
        registry=facts["registry"].rstrip("/"),
        queue=facts["queue"],
        repositories=facts["repositories"] or ("*",),
        delta_count=facts["deltas"],
        job_count=facts["jobs"],
        scan_seconds=facts["scan"],
        config=docker_config(),
        ca=facts["ca"],
        realms=facts["realms"],
    )
    secret = _read_secret(facts["secret_file"])
    teller = None
    if facts["agents"]:
        from layerkit.edges.telling import Teller

        teller = Teller(facts["agents"], _read_secret(facts["tell_secret_file"]))
    options = _server_options(facts, is_guarded=bool(secret))
    console = state_of(context).console
    with contextlib.suppress(SystemExit):  # SIGTERM before the server ran
        run_hook(settings, options, secret, env=os.environ, teller=teller, ready=console.result)
    console.say("stopped")


def _read_secret(path: Path | None) -> str:
    if path is None:
        return ""
    from layerkit.edges.sources import read_file
    from layerkit.jobs.hook import read_secret

    return read_secret(read_file(path), path)


def _server_options(facts: dict[str, Any], *, is_guarded: bool) -> ServerOptions:
    from layerkit.edges.http import ServerOptions

    try:
        return ServerOptions(
            listen=facts["listen"],
            tls=tls_files(facts),
            open_to_all=facts["open_to_all"] or is_guarded,
            log_format=facts["log_format"] or "",
        )
    except UsageError as exc:
        if "no tokens" not in exc.message:
            raise
        raise UsageError(
            f"{facts['listen']} is not a loopback address, and no secret is asked for",
            hint="add --secret-file, or --open to hear everyone",
        ) from exc
