"""formats/tokens: who may see what, and the token file, whatever bytes are in it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.errors import FormatError, VersionError
from layerkit.formats import tokens
from layerkit.formats.tokens import (
    ANYONE,
    Caller,
    Token,
    find_caller,
    hash_token,
    make_token,
    parse_tokens,
    serialize_tokens,
)

TEXT = "lkt_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
FILE = b"""{
 "kind": "layerkit-tokens",
 "version": 1,
 "tokens": [
  {
   "name": "ci",
   "sha256": "686e7460bcd7d840c4f09689ea8103d6b25bddc587fd4242475b4e4cb4caeef5",
   "pull": [
    "team/*"
   ],
   "push": [],
   "created": "2026-11-25"
  }
 ]
}
"""
CALLER = Caller("ci", ("team/*",), ())


def test_a_token_is_256_bits_as_text() -> None:
    assert make_token(bytes(range(32))) == TEXT
    with pytest.raises(FormatError):
        make_token(bytes(16))


def test_the_file_is_frozen() -> None:
    """A server of today reads the file of yesterday."""
    (token,) = parse_tokens(FILE)
    assert (token.caller, token.raw_hash) == (CALLER, hash_token(TEXT))
    assert serialize_tokens([token]) == FILE


def test_a_token_finds_its_caller() -> None:
    known = [Token(Caller(name, ("*",), ()), hash_token(name), "") for name in ("x", "y", "z")]
    found = [find_caller(known, hash_token(text)) for text in ("y", "w")]
    assert [caller and caller.id for caller in found] == ["y", None]


@pytest.mark.parametrize(
    ("pattern", "name", "want"),
    [
        ("*", "team/a", True),
        ("team/*", "team/a", True),
        ("team/*", "team/a/b", True),
        ("team/*", "team", False),
        ("team/*", "teams/a", False),
        ("team/[ab]", "team/b", True),
        ("team/?", "team/ab", False),
        ("team", "team", True),
    ],
)
def test_patterns_are_as_in_a_shell(pattern: str, name: str, want: bool) -> None:
    caller = Caller("x", (pattern,), ())
    assert (caller.may_pull(name), caller.may_push(name)) == (want, False)


def test_anyone_pulls_all_and_pushes_nothing() -> None:
    assert ANYONE.may_pull("a/b") and ANYONE.may_pull_all and not ANYONE.may_push("a/b")


def changed(**facts: Any) -> bytes:
    document = json.loads(FILE)
    for key, value in facts.items():
        document["tokens"][0][key] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "raw",
    [
        changed(name="a b"),
        changed(name=""),
        changed(name=7),
        changed(sha256="BF" * 32),
        changed(sha256="00"),
        changed(pull="team/*"),
        changed(pull=[1]),
        changed(pull=["Team/*"]),
        changed(push=["x"] * 65),
        changed(created=None),
        b"[" * 100_000,
        FILE.replace(b'"tokens": [', b'"tokens": {').replace(b" ]\n}", b" }\n}"),
        b" " * (tokens.MAX_FILE_SIZE + 1),
    ],
)
def test_what_is_no_token_file_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_tokens(raw)


def test_names_are_unique() -> None:
    document = json.loads(FILE)
    document["tokens"] *= 2
    with pytest.raises(FormatError, match="twice"):
        parse_tokens(json.dumps(document).encode())


def test_another_version_is_said() -> None:
    with pytest.raises(VersionError):
        parse_tokens(FILE.replace(b'"version": 1', b'"version": 2'))


@given(st.binary(max_size=300))
def test_bytes_are_tokens_or_a_format_error(raw: bytes) -> None:
    for data in (raw, FILE[: len(raw)] + raw):
        with contextlib.suppress(FormatError):
            parse_tokens(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["name", "sha256", "pull", "push", "created"]), json_values),
    json_values,
)
def test_documents_are_tokens_or_a_format_error(entry: dict[str, Any], other: Any) -> None:
    for listed in ([entry], other):
        raw = json.dumps({"kind": "layerkit-tokens", "version": 1, "tokens": listed}).encode()
        with contextlib.suppress(FormatError):
            parse_tokens(raw)
