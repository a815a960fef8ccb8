"""An OCI registry, on oras-py: `client` its content, `referrers`, `transport` its HTTP and rights.

Importing it takes 0.1 s for oras: do it where a registry is used.
"""

from __future__ import annotations

from layerkit.edges.registry.client import HELD, MOUNTED, SENT, Registry
from layerkit.edges.registry.referrers import (
    add_fallback,
    fallback_tag,
    is_fallback_tag,
    list_referrers,
)
from layerkit.edges.registry.transport import PATIENCE, Transport

__all__ = [
    "HELD",
    "MOUNTED",
    "PATIENCE",
    "SENT",
    "Registry",
    "Transport",
    "add_fallback",
    "fallback_tag",
    "is_fallback_tag",
    "list_referrers",
]
