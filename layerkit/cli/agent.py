"""The verb agent: the daemon, and what people ask of one that runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from layerkit.cli.common import State, default_store, json_option, option, state_of, verb
from layerkit.errors import UsageError

__all__ = ["add_agent_verbs"]

SOCKET_NAME = "agent.sock"


def default_socket() -> Path:
    """Where an agent answers when nobody says."""
    if os.geteuid() == 0:
        return Path("/run/layerkit") / SOCKET_NAME
    return Path(os.environ.get("XDG_RUNTIME_DIR") or default_store()) / f"layerkit-{SOCKET_NAME}"


_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)

socket_option = option(
    "--socket",
    type=_PATH,
    default=None,
    show_default="/run/layerkit/agent.sock for root, else in $XDG_RUNTIME_DIR",
    help="Where the agent answers.",
)


def add_agent_verbs(group: click.Group) -> None:
    """Register `agent` and what is below it."""
    below = verb(group, "agent", cls=click.Group, invoke_without_command=True)(agent)
    assert isinstance(below, click.Group)
    for name, function in (
        ("status", status),
        ("pull", pull),
        ("watch", watch),
        ("unwatch", unwatch),
        ("remove", remove),
        ("pin", pin),
        ("unpin", unpin),
        ("list", list_images),
        ("gc", collect),
        ("metrics", metrics),
    ):
        verb(below, name)(function)


@option(
    "--store",
    type=_FOLDER,
    default=None,
    show_default="/var/lib/layerkit for root, else ~/.local/state/layerkit",
    help="The node's store.",
)
@option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    help="A chunk server, the next one if one fails.  [default: the registries of the names]",
)
@socket_option
@option(
    "--watch",
    "watch",
    multiple=True,
    metavar="NAME[:TAG]",
    help="A name to keep at its newest version.",
)
@option("--keep", type=int, help="Versions kept of each name.  [default: 3]", metavar="N")
@option("--quota", metavar="SIZE", help="What the store may take, as 10GiB.  [default: no limit]")
@option("--rootfs", type=_FOLDER, help="Unpack versions here: DIR/NAME/current/.")
@option("--layouts", type=_FOLDER, help="Or write them as OCI layouts: DIR/NAME/current/.")
@option(
    "--load",
    multiple=True,
    metavar="ENGINE",
    help="Hand images to docker or containerd, too.",
)
@option("--config", type=_PATH, help="A TOML file with the same names as these options.")
@option("--token-file", type=_PATH, help="File with the bearer token for the servers.")
@option("--ca", type=_PATH, help="PEM file of the authorities to trust.  [default: system]")
@option("--client-cert", type=_PATH, help="PEM file of the certificate to show.")
@option("--client-key", type=_PATH, help="Its key, if it is not in the same file.")
@option(
    "--verify",
    multiple=True,
    type=_PATH,
    metavar="KEY.pub",
    help="Take only images that this public key signed (layerkit or cosign); of several, any.",
)
@option(
    "--poll",
    "poll_seconds",
    type=float,
    metavar="SECONDS",
    help="How often a registry is asked for news.  [default: 30]",
)
@option("--token-realm", "token_realms", multiple=True, help="A registry's token service, by host.")
@option("--metrics", metavar="ADDR", help="Show metrics for Prometheus at this address, too.")
@option("--events", metavar="ADDR", help="Where registries tell of pushes: POST /events.")
@option("--events-secret-file", type=_PATH, help="File with the secret that they show there.")
@option("--platform", help="Which image of an index to take.  [default: this machine's]")
@option("--once", is_flag=True, help="Pull each watched name once, then end.")
@click.pass_context
def agent(context: click.Context, /, once: bool, **options: Any) -> None:
    """Keep a node's images at their newest versions, as a daemon.

    Watches names on servers or registries (with docker's logins), pulls what changes, keeps the
    last versions as folders with a link to the current one, and answers on a unix socket. Logs are
    JSON on stderr. SIGTERM ends it well, SIGHUP reads --config again.
    """
    if context.invoked_subcommand is not None:
        context.obj = state_of(context)
        context.meta["layerkit.socket"] = options["socket"]
        return
    from dataclasses import replace

    from layerkit.jobs.agent import Settings, load_settings

    docker = os.environ.get("DOCKER_CONFIG")

    def load() -> Settings:
        found = load_settings(options, default_store())
        if docker and found.docker_config is None:
            found = replace(found, docker_config=Path(docker) / "config.json")
        if found.socket is None and not once:
            place = default_socket()
            place.parent.mkdir(parents=True, exist_ok=True)
            found = replace(found, socket=place)
        return found

    settings = load()  # what is wrong there is told before the daemon loads
    from layerkit.edges.notify import Notifier
    from layerkit.jobs.agent.daemon import run_agent

    console = state_of(context).console
    watchdog = os.environ.get("WATCHDOG_USEC", "0")
    notifier = Notifier(
        os.environ.get("NOTIFY_SOCKET", ""),
        int(watchdog) / 1e6 if watchdog.isascii() and watchdog.isdigit() else 0.0,
    )
    env = dict(os.environ)
    run_agent(settings, load, env=env, notifier=notifier, once=once, ready=console.result)


def _ask(
    context: click.Context,
    socket: Path | None,
    method: str,
    path: str,
    document: dict[str, object] | None = None,
    *,
    timeout: float | None = 60.0,
) -> dict[str, Any] | str:
    from layerkit.edges.localclient import ask_agent

    where = socket or context.meta.get("layerkit.socket") or default_socket()
    return ask_agent(where, method, path, document, timeout)


def _show(state: State, answer: dict[str, Any] | str, line: str) -> None:
    """The whole answer with --json, else one line."""
    if state.as_json and isinstance(answer, dict):
        state.console.document(answer)
    else:
        state.console.result(line)


@socket_option
@json_option
@click.pass_context
def status(context: click.Context, socket: Path | None) -> None:
    """Say how the agent is, and each name: its state, version, and what last went wrong."""
    answer = _ask(context, socket, "GET", "/v1/status")
    assert isinstance(answer, dict)
    state = state_of(context)
    if state.as_json:
        state.console.document(answer)
        return
    rows = [
        (
            name["ref"],
            name["state"],
            name["digest"][:19],
            str(len(name["versions"])),
            (name["last_error"] or {}).get("message", ""),
        )
        for name in answer["names"]
    ]
    console = state.console
    for server in answer["servers"]:
        console.result(f"server {server['url']}: {'good' if server['usable'] else 'failing'}")
    for engine in answer["engines"]:
        problem = (engine["last_error"] or {}).get("message", "good")
        console.result(f"engine {engine['kind']}: {problem}")
    console.table("", ("name", "state", "digest", "versions", "last error"), rows)


@click.argument("ref")
@socket_option
@option("--no-wait", is_flag=True, help="Start the pull, do not wait for its end.")
@json_option
@click.pass_context
def pull(context: click.Context, ref: str, socket: Path | None, no_wait: bool) -> None:
    """Let the agent pull REF now, whether it watches it or not. Prints the image's digest."""
    request: dict[str, object] = {"ref": ref, "wait": not no_wait}
    answer = _ask(context, socket, "POST", "/v1/pull", request, timeout=None)
    assert isinstance(answer, dict)
    name = answer["ref"].rpartition(":")[0]
    _show(state_of(context), answer, f"{name}@{answer['digest']}" if answer["digest"] else name)


def _changing(name: str, text: str) -> Callable[..., None]:
    """A verb that asks the agent for one change of REF, and is explained by `text`."""

    @click.argument("ref")
    @socket_option
    @json_option
    @click.pass_context
    def change(context: click.Context, ref: str, socket: Path | None) -> None:
        answer = _ask(context, socket, "POST", f"/v1/{name}", {"ref": ref}, timeout=600.0)
        assert isinstance(answer, dict)
        _show(state_of(context), answer, str(answer["ref"]))

    change.__doc__ = text
    return change


watch = _changing(
    "watch", "Keep the name REF at its newest version from now on, also after a restart."
)
unwatch = _changing("unwatch", "Do not watch the name REF any more; its versions stay.")
remove = _changing(
    "remove", "Forget the name REF with all its versions, or with a digest one old version of it."
)
pin = _changing(
    "pin", "Keep a version of REF (the current one, or that with its digest) until it is unpinned."
)
unpin = _changing("unpin", "Let a pinned version of REF go when it is old.")


@socket_option
@json_option
@click.pass_context
def list_images(context: click.Context, socket: Path | None) -> None:
    """List the images in the agent's store, whoever pulled them."""
    answer = _ask(context, socket, "GET", "/v1/images", timeout=600.0)
    assert isinstance(answer, dict)
    lines = [f"{image['digest']}  {image['ref']}" for image in answer["images"]]
    if lines or state_of(context).as_json:
        _show(state_of(context), answer, "\n".join(lines))


@socket_option
@option("--dry-run", is_flag=True, help="Remove nothing, say what would go.")
@json_option
@click.pass_context
def collect(context: click.Context, socket: Path | None, dry_run: bool) -> None:
    """Drop from the agent's store what no image and no pin needs."""
    from layerkit.console import human_size

    answer = _ask(context, socket, "POST", "/v1/gc", {"dry_run": dry_run}, timeout=None)
    assert isinstance(answer, dict)
    did = "would drop" if dry_run else "dropped"
    freed = human_size(int(answer["freed_size"]))
    _show(state_of(context), answer, f"{did} {answer['chunk_count']} chunks, {freed}")


@socket_option
@click.pass_context
def metrics(context: click.Context, socket: Path | None) -> None:
    """Print the agent's metrics as Prometheus reads them."""
    answer = _ask(context, socket, "GET", "/metrics")
    if not isinstance(answer, str):
        raise UsageError("the agent's metrics are no text")
    state_of(context).console.result(answer.rstrip("\n"))
