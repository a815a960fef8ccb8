"""Pulls of one repository at the same time share their work: one goes first, the others wait for it
and find what it brought. It is a courtesy, no lock: who waited too long goes on alone, and a pull
that dies frees its claim (the store's sessions see to that).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from typing import Final

from layerkit.edges.store import Store

__all__ = ["alone"]

PATIENCE: Final = 30.0  # seconds for another pull of the same repository
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def alone(store: Store, repository: str) -> Iterator[None]:
    """Inside a session: be the one that pulls `repository` into this store, if others are ready to
    wait; else wait for the one that is."""
    key = hashlib.sha256(f"pull of {repository}".encode()).digest()
    claim = store.claim([key])
    if claim.others:
        _log.info("another process pulls %s, waiting for it", repository)
        store.wait_for(claim.others, lambda ids: set(), patience=PATIENCE)
        claim = store.claim([key])
    try:
        yield
    finally:
        store.release(claim.mine)
