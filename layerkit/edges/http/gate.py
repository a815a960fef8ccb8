"""Who asks: the Authorization header to a Caller.

Without a token file everyone is ANYONE. With one, `Authorization: Bearer TOKEN` and `Basic
NAME:TOKEN` (what container engines send after a login; the name is not looked at) are understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from layerkit.edges.tokens import TokenFile
from layerkit.errors import UnauthorizedError
from layerkit.formats.tokens import (
    ANYONE,
    Caller,
    find_caller,
    hash_token,
    read_credentials,
    shows_secret,
)

__all__ = ["CHALLENGE", "Gate", "SecretGate"]

# Engines that get a Bearer challenge look for a token service; after Basic they send what the
# user logged in with. So only Basic is offered (distribution spec, "docker login").
CHALLENGE: Final = ("www-authenticate", 'Basic realm="layerkit", charset="UTF-8"')


class Gate:
    """Lets callers in by the tokens of a file, which is read again when it changes."""

    def __init__(self, tokens: TokenFile | None) -> None:
        self._tokens = tokens

    @property
    def asks_for_tokens(self) -> bool:
        return self._tokens is not None

    def version(self) -> object:
        """Changes when callers may have changed. One stat of a file."""
        return None if self._tokens is None else self._tokens.version()

    def find_caller(self, headers: Mapping[str, str]) -> Caller:
        """The caller of a request; UnauthorizedError if there is no good token in it."""
        if self._tokens is None:
            return ANYONE
        credentials = headers.get("authorization", "")
        if not credentials:
            raise UnauthorizedError("this server asks for a token")
        token = read_credentials(credentials)
        found = find_caller(self._tokens.read(), hash_token(token)) if token else None
        if found is None:
            raise UnauthorizedError("this token is not known here")
        return found


class SecretGate:
    """Lets in who knows one secret, sent as a token is; only its hash is held."""

    asks_for_tokens = True

    def __init__(self, secret: str) -> None:
        self._raw_hash = hash_token(secret)

    def version(self) -> object:
        return None

    def find_caller(self, headers: Mapping[str, str]) -> Caller:
        credentials = headers.get("authorization", "")
        if not credentials:
            raise UnauthorizedError("this server asks for a secret")
        if not shows_secret(credentials, self._raw_hash):
            raise UnauthorizedError("this secret is not known here")
        return ANYONE
