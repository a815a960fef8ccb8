"""The verb `pull`: which servers, whom to trust, where the image goes to, what it may ask for."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from layerkit.cli.common import (
    State,
    docker_config,
    document_of,
    json_option,
    option,
    quota_option,
    state_of,
    store_option,
    verb,
)
from layerkit.cli.loading import check_load, load_image, load_options, say_loaded, scratch_folder
from layerkit.cli.signing import load_check, verify_option
from layerkit.errors import (
    IntegrityError,
    LayerkitError,
    NotFoundError,
    RemoteError,
    SignatureError,
    UsageError,
)

if TYPE_CHECKING:
    from layerkit.edges.loading import Loaded
    from layerkit.edges.remote import Remote
    from layerkit.edges.store import Store
    from layerkit.edges.upstream import Upstream
    from layerkit.formats.reference import Reference
    from layerkit.jobs.pull import PullResult

    Source = Callable[[Store], Upstream]

__all__ = ["add_pull_verb", "open_remote", "read_token", "trust_options"]

MAX_TOKEN_SIZE: Final = 4096  # bytes of a token file
_FILE: Final = click.Path(dir_okay=False, path_type=Path)
_FOLDER: Final = click.Path(file_okay=False, path_type=Path)


def add_pull_verb(group: click.Group) -> None:
    """Register the verb."""
    verb(group, "pull")(pull)


def trust_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the node shows to a server, and whom it believes."""
    for one in (
        option("--client-key", type=_FILE, help="Its key, if it is not in the same file."),
        option("--client-cert", type=_FILE, help="PEM file of the certificate to show."),
        option("--ca", type=_FILE, help="PEM file of the authorities to trust.  [default: system]"),
        option("--token-file", type=_FILE, help="File that holds the bearer token."),
        option(
            "--token",
            default="",
            show_default=False,
            help="Bearer token for the servers; others on this machine see it: better a file.",
        ),
    ):
        function = one(function)
    return function


def tree_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the file tree of an image may hold."""
    count = click.IntRange(min=1)
    for one in (
        option("--max-depth", type=count, default=64, help="Parts of a path in --rootfs at most."),
        option("--max-size", type=count, help="Bytes in --rootfs at most.  [default: 8 GiB]"),
        option("--max-files", type=count, default=1 << 18, help="Files in --rootfs at most."),
        option("--keep-owners", is_flag=True, help="Owners in --rootfs as in the image; for root."),
        option("--allow-setuid", is_flag=True, help="Leave setuid and setgid bits in --rootfs."),
        option("--allow-devices", is_flag=True, help="Make devices and pipes in --rootfs."),
    ):
        function = one(function)
    return function


@click.argument("ref")
@option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    help="A chunk server, the next one if one fails.  [default: the registry in REF]",
)
@option("--bundle", type=_FILE, metavar="FILE", help="Take it from this file, asking nobody.")
@store_option
@quota_option
@option("-o", "--output", type=_FOLDER, help="Write the image to this OCI layout.")
@option("--rootfs", type=_FOLDER, help="Write the image's files to this folder.")
@option("--platform", help="Which image of an index to take.  [default: this machine's]")
@verify_option
@trust_options
@option("--token-realm", "realms", multiple=True, help="A registry's token service, by host.")
@option("--dry-run", is_flag=True, help="Fetch no bytes of layers, say what would be fetched.")
@option("--fewest-bytes", is_flag=True, help="Move few bytes also where more would be quicker.")
@tree_options
@load_options
@json_option
@click.pass_context
def pull(context: click.Context, /, ref: str, servers: tuple[str, ...], **facts: Any) -> None:
    """Bring the image REF into the store, fetching only the chunks that it lacks.

    From chunk servers, or from the registry that REF names, with docker's logins ('docker login');
    or from a file of 'layerkit bundle'.
    Prints the image's digest. What was fetched stays fetched: after a cut, pull again. On a fast
    line a layer comes whole where that is quicker, and its form is made when the image is there.
    """
    from layerkit.edges.disk import Disk
    from layerkit.edges.store import Store
    from layerkit.formats.reference import Reference

    parsed = Reference.parse(ref).tagged
    state = state_of(context)
    if facts["keep_owners"] and os.geteuid() != 0:
        raise UsageError("--keep-owners needs root", hint="run as root, or leave it out")
    check_load(facts, parsed)
    if facts["load"] and facts["dry_run"]:
        raise UsageError("--load and --dry-run exclude each other")
    facts["token"] = read_token(facts["token"], facts["token_file"])
    facts["check"] = load_check(facts["keys"])
    sources = _list_sources(servers, parsed, facts)
    with Store(facts["store"], Disk(), facts["quota"]) as store, contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder()) if facts["load"] else None
        if scratch is not None:
            facts["output"] = facts["output"] or scratch / "layout"
        source, found = _pull_from_any(sources, parsed, store, state, facts)
        _show(found, parsed, state, _load(parsed, facts, scratch) if scratch else None)
        if found.plain_count:
            sys.stdout.flush()
            with source(store) as remote:
                _rebuild(parsed, remote, store, state, facts)


def _list_sources(servers: tuple[str, ...], ref: Reference, facts: dict[str, Any]) -> list[Source]:
    """What opens each place that the image may come from."""
    if facts["bundle"] is not None:
        if servers or facts["token"]:
            raise UsageError("--bundle asks no server", hint="leave out --server and tokens")
        return [partial(open_bundle, facts["bundle"], ref, facts)]
    if servers:
        return [partial(_open_server, url, facts) for url in servers]
    if not ref.host:
        raise UsageError(
            f"{ref} names no registry",
            hint="write registry.example/name:tag, or name a chunk server with --server URL",
        )
    if facts["token"]:
        raise UsageError(
            "a token is for chunk servers, and none is named",
            hint=f"run 'docker login {ref.host}', or name one with --server URL",
        )
    return [partial(open_registry, ref.registry_url, facts)]


def _pull_from_any(
    sources: list[Source], ref: Reference, store: Store, state: State, facts: dict[str, Any]
) -> tuple[Source, PullResult]:
    """Ask one after the other; what one has sent is not asked for again."""
    for at, source in enumerate(sources, 1):
        try:
            with source(store) as remote:
                return source, _pull_from(remote, ref, store, state, facts)
        except (RemoteError, IntegrityError, SignatureError) as exc:
            if at == len(sources):
                raise
            state.console.warn(f"{exc.message} [{exc.code}], asking the next server")
    raise AssertionError("unreachable")


def open_bundle(path: Path, ref: Reference, facts: dict[str, Any], store: Store) -> Upstream:
    """A bundle that brings `ref` to this store; else NotFoundError, and nothing was touched."""
    from layerkit.edges.bundle import BundleUpstream
    from layerkit.jobs.bundle import check_usable
    from layerkit.jobs.pull import host_platform

    upstream = BundleUpstream(path)
    try:
        check_usable(upstream, ref, store, facts["platform"] or str(host_platform()))
    except BaseException:
        upstream.close()
        raise
    return upstream


def open_registry(url: str, facts: dict[str, Any], store: Store) -> Upstream:
    """The registry at `url`; what is found out about it is kept in the store."""
    from layerkit.edges.registry.upstream import open_upstream

    return open_upstream(
        url,
        store,
        config=docker_config(),
        ca=facts["ca"],
        client_cert=facts["client_cert"],
        client_key=facts["client_key"],
        realms=facts["realms"],
    )


def _open_server(url: str, facts: dict[str, Any], store: Store) -> Upstream:
    return open_remote(url, facts)


def open_remote(url: str, facts: dict[str, Any]) -> Remote:
    from layerkit.edges.remote import Remote, Tls

    tls = Tls(facts["ca"], facts["client_cert"], facts["client_key"])
    return Remote(url, token=facts["token"], tls=tls)


def _pull_from(
    remote: Upstream, ref: Reference, store: Store, state: State, facts: dict[str, Any]
) -> PullResult:
    from layerkit.edges.disk import Disk
    from layerkit.edges.rootfs import Limits, Rights
    from layerkit.formats.oci import parse_platform
    from layerkit.jobs.pull import pull as run_pull

    limits = Limits(
        facts["max_files"], facts["max_size"] or Limits().total_size, facts["max_depth"]
    )
    rights = Rights(facts["allow_devices"], facts["allow_setuid"], facts["keep_owners"])
    with state.console.progress(str(ref)) as progress:
        return run_pull(
            ref,
            remote,
            store,
            disk=Disk(),
            output=facts["output"],
            rootfs=facts["rootfs"],
            limits=limits,
            rights=rights,
            platform=parse_platform(facts["platform"]) if facts["platform"] else None,
            dry_run=facts["dry_run"],
            fewest_bytes=facts["fewest_bytes"],
            progress=progress,
            check=facts["check"],
        )


def _rebuild(
    ref: Reference, remote: Upstream, store: Store, state: State, facts: dict[str, Any]
) -> None:
    """Forms of what came plainly. The image is there already: a failure only costs bytes later."""
    from layerkit.formats.oci import parse_platform
    from layerkit.jobs.pull import rebuild_forms

    platform = parse_platform(facts["platform"]) if facts["platform"] else None
    try:
        rebuild_forms(ref, remote, store, platform=platform)
    except (LayerkitError, OSError) as exc:
        state.console.warn(f"the next update moves more bytes: {exc}")


def read_token(token: str, path: Path | None) -> str:
    """The bearer token: given, or what a file holds in one line."""
    if path is None:
        return token
    if token:
        raise UsageError("--token and --token-file exclude each other")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TOKEN_SIZE + 1)
    except OSError as exc:
        raise NotFoundError(f"cannot read {path}", cause=str(exc.strerror)) from exc
    text = raw.decode("ascii", "replace").strip()
    if not text or len(raw) > MAX_TOKEN_SIZE:
        raise UsageError(f"{path} holds no token", hint="put the token in it, in one line")
    return text


def _load(ref: Reference, facts: dict[str, Any], scratch: Path) -> Loaded:
    """Hand what was pulled to an engine."""
    from layerkit.edges.layout import Layout
    from layerkit.formats.oci import parse_platform
    from layerkit.jobs.pull import host_platform

    platform = parse_platform(facts["platform"]) if facts["platform"] else host_platform()
    return load_image(Layout(facts["output"]), ref, platform, facts, scratch)


def _show(found: PullResult, ref: Reference, state: State, loaded: Loaded | None) -> None:
    if state.as_json:
        more = {"loaded": document_of(loaded)} if loaded is not None else {}
        state.console.document(document_of(found) | more)
        return
    if found.dry_run:
        state.console.result(_describe(found))
        return
    state.console.result(str(ref.pinned(found.digest)))
    state.console.say(_describe(found))
    if loaded is not None:
        say_loaded(loaded, state)


def _describe(found: PullResult) -> str:
    from layerkit.console import human_size

    if found.up_to_date:
        return f"up to date: moved {human_size(found.moved_size)}"
    whole = human_size(found.whole_size)
    if found.dry_run:
        return f"would move about {human_size(found.planned_size)} instead of {whole}"
    return (
        f"moved {human_size(found.moved_size)} instead of {whole}, {found.request_count} requests,"
        f" {found.seconds:.2f} s; {found.fetched_count} chunks fetched, {found.held_count} held"
    )
