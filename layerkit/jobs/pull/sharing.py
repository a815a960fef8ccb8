"""Pulls into one store at the same time share their work: one goes first, the others wait for it
and find what it brought. It is a courtesy, no lock: who waited too long goes on alone, and a pull
that dies frees its claim (the store's sessions see to that).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Final

from layerkit.edges.store import Store

__all__ = ["alone"]

PATIENCE: Final = 30.0  # seconds for other pulls
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def alone(
    store: Store, repository: str, *, is_first: bool, now: Callable[[], float] = time.monotonic
) -> Iterator[None]:
    """Inside a session: be the one that pulls `repository` into this store, or wait for the one
    that is. First pulls wait for each other whatever their repositories: images have their base in
    common, and who comes second finds it here. Nobody waits while it holds a claim."""
    names = [f"pull of {repository}", *(["first pull"] if is_first else [])]
    keys = [hashlib.sha256(name.encode()).digest() for name in names]
    until = now() + PATIENCE
    claim = store.claim(keys)
    while claim.others and now() < until:
        store.release(claim.mine)
        _log.info("another process pulls what %s may share, waiting for it", repository)
        store.wait_for(claim.others, lambda ids: set(), patience=until - now())
        claim = store.claim(keys)
    try:
        yield
    finally:
        store.release(claim.mine)
