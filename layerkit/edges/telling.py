"""Tells agents that a tag names another image, as a registry would (`edges.newsapi` hears it).

A courtesy: an agent that is not reached asks by itself sooner or later, so nothing is tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from layerkit.edges.httpclient import Client, Tls
from layerkit.errors import LayerkitError
from layerkit.formats.notifications import Pushed, serialize_notification

__all__ = ["Teller"]

ANSWER_SECONDS: Final = 5.0
_log = logging.getLogger(__name__)


class Teller:
    """`urls` are of agents (`--events`), without the path; `secret` is shown to each."""

    def __init__(self, urls: Sequence[str], secret: str = "", tls: Tls | None = None) -> None:
        self._clients = [
            Client(url, token=secret, tls=tls, pauses=(), read_seconds=ANSWER_SECONDS)
            for url in urls
        ]

    def tell(self, pushed: Pushed) -> int:
        """Tell all, one after the other; how many heard it."""
        heard = 0
        headers = {"content-type": "application/json"}
        for client in self._clients:
            try:
                client.send("POST", "/events", headers, serialize_notification(pushed)).close()
                heard += 1
            except LayerkitError as exc:
                _log.warning("%s was not told: %s (%s)", client.url, exc.message, exc.cause)
        return heard
