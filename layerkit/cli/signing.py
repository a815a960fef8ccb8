"""The option --verify, for the verbs that take images: which keys count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerkit.cli.common import option

if TYPE_CHECKING:
    from layerkit.jobs.pull.documents import Check

__all__ = ["load_check", "verify_option"]


def verify_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--verify KEY, any number of times; the verb gets `keys`."""
    return option(
        "--verify",
        "keys",
        multiple=True,
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="KEY.pub",
        help="Take it only if this public key signed it (layerkit or cosign); of several, any.",
    )(function)


def load_check(keys: Sequence[Path]) -> Check | None:
    """What a pull asks before it uses an image; None without keys."""
    if not keys:
        return None
    from layerkit.edges.signing import Verifier
    from layerkit.jobs.pull import make_check

    return make_check(Verifier.load(keys))
