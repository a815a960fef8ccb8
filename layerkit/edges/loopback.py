"""Servers on this machine: whether a port speaks TLS.

A reference says nothing of a scheme. Engines try TLS first and then, on a loopback address, plain
HTTP. Here the first plain request tells: where it is refused or breaks, a handshake shows whether
TLS is spoken, and from then on nothing else is. Never the other way round: what speaks TLS is not
asked in clear.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final
from urllib.parse import urlsplit

from layerkit.formats.reference import is_loopback

__all__ = ["speaks_tls"]

HANDSHAKE_SECONDS: Final = 3.0


def speaks_tls(url: str) -> bool:
    """Does a port of this machine answer a TLS handshake? Whether its certificate is to be trusted
    is not asked here. False for all that is not plain HTTP on a loopback address."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http" or not is_loopback(host):
        return False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, parts.port or 80), HANDSHAKE_SECONDS) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except ssl.SSLError as exc:
        return "ALERT" in (exc.reason or "").upper()  # it wants a client's certificate, say
    except (OSError, ValueError):
        return False
