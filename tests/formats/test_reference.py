"""References: the grammar, and one error for all else."""

from __future__ import annotations

import pytest

from layerkit.errors import UsageError
from layerkit.formats.reference import Reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("hello", "", "hello", "", ""),
        ("hello:v1", "", "hello", "v1", ""),
        ("team/hello:v1", "", "team/hello", "v1", ""),
        ("localhost/hello", "localhost", "hello", "", ""),
        ("127.0.0.1:5000/a/b_c:x", "127.0.0.1:5000", "a/b_c", "x", ""),
        ("[::1]:5000/a", "[::1]:5000", "a", "", ""),
        (f"r.example/a@{DIGEST}", "r.example", "a", "", DIGEST),
        (f"r.example:80/a:t@{DIGEST}", "r.example:80", "a", "t", DIGEST),
    ],
)
def test_parse(text: str, host: str, repository: str, tag: str, digest: str) -> None:
    ref = Reference.parse(text)
    found = (ref.host, ref.repository, ref.tag, str(ref.digest or ""))
    assert found == (host, repository, tag, digest)
    assert str(ref) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "@", "a:", "a@", "A", "a b", "a//b", "/a", "a/", "a:b:c", "a..b", "-a", "a:.x",
        "a:" + "t" * 129, "n" * 256, f"a@{DIGEST[:-1]}", "a@b3:" + "0" * 64, "ho_st.x:80/a",
        "http://a.example/b", "a\n", "a:x\n", "../a",
    ],
)  # fmt: skip
def test_bad_references_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        Reference.parse(text)


def test_tagged_adds_latest_only_where_nothing_is_said() -> None:
    names = [str(Reference.parse(text).tagged) for text in ("a", "a:b", f"a@{DIGEST}")]
    assert names == ["a:latest", "a:b", f"a@{DIGEST}"]


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("hello", ""),
        ("docker.io/hello", "https://registry-1.docker.io"),
        ("ghcr.io/a/b", "https://ghcr.io"),
        ("localhost:5000/a", "http://localhost:5000"),
        ("127.0.0.1/a", "http://127.0.0.1"),
        ("127.8.9.1:5000/a", "http://127.8.9.1:5000"),
        ("[::1]:5000/a", "http://[::1]:5000"),
        ("127.example.org/a", "https://127.example.org"),
        ("127.0.0.1.example.org/a", "https://127.0.0.1.example.org"),
    ],
)
def test_only_this_machine_is_asked_in_clear(text: str, url: str) -> None:
    assert Reference.parse(text).registry_url == url
