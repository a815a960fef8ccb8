"""Tokens of a chunk server: who asks, what they may see, and the file that says so.

Pure. A token is 256 random bits as text; the file holds only its SHA-256. Names are matched by
patterns as shells write them (`team/*`, which takes `team/a/b`, too). Spec: docs/format.md "Token
file". Limits: MAX_FILE_SIZE, MAX_TOKEN_COUNT, MAX_PATTERN_COUNT.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from layerkit.errors import FormatError, VersionError

__all__ = [
    "ANYONE",
    "Caller",
    "Token",
    "find_caller",
    "hash_token",
    "make_token",
    "parse_tokens",
    "read_credentials",
    "serialize_tokens",
    "shows_secret",
]

KIND: Final = "layerkit-tokens"
VERSION: Final = 1
TOKEN_PREFIX: Final = "lkt_"  # so that scanners for leaked secrets know it
TOKEN_BITS: Final = 256
MAX_FILE_SIZE: Final = 4 << 20  # bytes
MAX_TOKEN_COUNT: Final = 10_000
MAX_CREDENTIALS_SIZE: Final = 4096  # bytes of an Authorization header
MAX_PATTERN_COUNT: Final = 64  # of a scope
_PATTERN: Final = re.compile(r"[a-z0-9._/*?\[\]!-]{1,256}")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: `id` for limits and logs, and the repositories that they may pull and push."""

    id: str
    pull: tuple[str, ...]
    push: tuple[str, ...]

    def may_pull(self, name: str) -> bool:
        return _matches(name, self.pull)

    def may_push(self, name: str) -> bool:
        return _matches(name, self.push)

    @property
    def may_pull_all(self) -> bool:
        """Is nothing hidden from this caller?"""
        return "*" in self.pull


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


ANYONE: Final = Caller("", ("*",), ())  # of a server that knows no users


@dataclass(frozen=True, slots=True)
class Token:
    """A line of the token file: the caller, the hash of the token, the day it was made."""

    caller: Caller
    raw_hash: bytes
    created: str

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.caller.id):
            raise FormatError(f"{self.caller.id[:80]!r} is not a token's name")
        for patterns in (self.caller.pull, self.caller.push):
            if len(patterns) > MAX_PATTERN_COUNT:
                raise FormatError(f"{len(patterns)} patterns, want <= {MAX_PATTERN_COUNT}")
            for pattern in patterns:
                if not _PATTERN.fullmatch(pattern):
                    raise FormatError(f"{pattern[:80]!r} is not a pattern of repository names")
        if len(self.raw_hash) != hashlib.sha256().digest_size:
            raise FormatError("a token's hash is not 32 bytes")


def make_token(raw_bits: bytes) -> str:
    """The text of a token from 32 random bytes."""
    if len(raw_bits) * 8 != TOKEN_BITS:
        raise FormatError(f"a token of {len(raw_bits) * 8} bits, want {TOKEN_BITS}")
    return TOKEN_PREFIX + base64.urlsafe_b64encode(raw_bits).decode("ascii").rstrip("=")


def hash_token(text: str) -> bytes:
    """What is stored of a token. One round is enough: nobody guesses 256 bits."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def read_credentials(credentials: str) -> str:
    """The token in an Authorization header: `Bearer TOKEN`, or the password of `Basic`; else ""."""
    scheme, _, value = credentials[:MAX_CREDENTIALS_SIZE].partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() != "basic":
        return ""
    try:
        plain = base64.b64decode(value, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return plain.partition(":")[2]


def shows_secret(credentials: str, raw_hash: bytes) -> bool:
    """Does an Authorization header show the secret with this hash? Hashes are compared, in constant
    time: neither bytes nor length of the secret leak."""
    return hmac.compare_digest(hash_token(read_credentials(credentials)), raw_hash)


def find_caller(tokens: Iterable[Token], raw_hash: bytes) -> Caller | None:
    """Whose token this is. Every entry is compared, in constant time."""
    found = None
    for token in tokens:
        if hmac.compare_digest(token.raw_hash, raw_hash):
            found = token.caller
    return found


def serialize_tokens(tokens: Iterable[Token]) -> bytes:
    """The token file, by name."""
    entries = [
        {
            "name": token.caller.id,
            "sha256": token.raw_hash.hex(),
            "pull": list(token.caller.pull),
            "push": list(token.caller.push),
            "created": token.created,
        }
        for token in sorted(tokens, key=lambda token: token.caller.id)
    ]
    document = {"kind": KIND, "version": VERSION, "tokens": entries}
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def parse_tokens(raw: bytes) -> tuple[Token, ...]:
    """The tokens of a file; anything that is not one is a FormatError."""
    if len(raw) > MAX_FILE_SIZE:
        raise FormatError(f"token file of {len(raw)} bytes is over {MAX_FILE_SIZE}")
    try:
        document = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise FormatError("token file is not JSON", cause=str(exc)[:200]) from exc
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise FormatError(f"token file does not say kind {KIND!r}")
    if document.get("version") != VERSION:
        raise VersionError(f"token file has version {document.get('version')!r}, want {VERSION}")
    entries = document.get("tokens")
    if not isinstance(entries, list) or len(entries) > MAX_TOKEN_COUNT:
        raise FormatError(f"token file does not hold a list of at most {MAX_TOKEN_COUNT} tokens")
    tokens = tuple(_parse_token(entry, index) for index, entry in enumerate(entries))
    if len({token.caller.id for token in tokens}) != len(tokens):
        raise FormatError("token file names a token twice")
    return tokens


def _parse_token(entry: object, index: int) -> Token:
    where = f"token file: entry {index}"
    if not isinstance(entry, dict):
        raise FormatError(f"{where} is not an object")
    texts = [entry.get(key) for key in ("name", "sha256", "created")]
    scopes = [entry.get(key, []) for key in ("pull", "push")]
    if not all(isinstance(text, str) and len(text) <= 256 for text in texts):
        raise FormatError(f"{where} lacks name, sha256 or created")
    if not all(
        isinstance(scope, list) and all(isinstance(item, str) for item in scope) for scope in scopes
    ):
        raise FormatError(f"{where}: pull or push is not a list of patterns")
    name, text, created = (str(text) for text in texts)
    if not _HASH.fullmatch(text):
        raise FormatError(f"{where}: sha256 is not 64 hex digits")
    pull, push = (tuple(scope) for scope in scopes)
    return Token(Caller(name, pull, push), bytes.fromhex(text), created)
