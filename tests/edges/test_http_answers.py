"""Parts, conditions and caching, as RFC 9110 and 9111 have them, over memory and over files."""

from __future__ import annotations

import email
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_source import MemorySource
from serving import Served, get, serving

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.http import Blob, Joined, UpdateAnswer
from layerkit.edges.http.answers import cut
from layerkit.edges.http.ranges import find_spans

DATA = bytes(range(256)) * 1200  # 300 KB: parts of it are read in steps


@pytest.fixture(scope="module", params=["memory", "small", "file"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    source = MemorySource()
    data = DATA[:20_000] if request.param == "small" else DATA
    path = tmp_path_factory.mktemp("blobs") / "blob" if request.param == "file" else None
    digest = source.blob("a", data, path)
    return source, digest, data


@pytest.fixture(scope="module")
def served(stored: tuple) -> Iterator[Served]:
    with serving(stored[0]) as found:
        yield found


RANGES = [
    ("bytes=0-9", slice(0, 10)),
    ("bytes=100-", slice(100, None)),
    ("bytes=-7", slice(-7, None)),
    ("bytes=0-999999999", slice(None)),
    ("bytes=-999999999", slice(None)),
    ("bytes = 5-5", slice(5, 6)),
    ("bytes=3-4,999999999-", slice(3, 5)),  # what does not exist is left out
]


@pytest.mark.parametrize(("wanted", "part"), RANGES)
def test_one_part(served: Served, stored: tuple, wanted: str, part: slice) -> None:
    _, digest, data = stored
    answer = get(served, f"/v2/a/blobs/{digest}", headers={"range": wanted})
    assert (answer.status, answer.data) == (206, data[part])
    start, stop, _ = part.indices(len(data))
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(data)}"


def test_several_parts(served: Served, stored: tuple) -> None:
    _, digest, data = stored
    answer = get(served, f"/v2/a/blobs/{digest}", headers={"range": "bytes=0-9, 50-59,-3"})
    assert answer.status == 206 and int(answer.headers["content-length"]) == len(answer.data)
    head = f"content-type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + answer.data).get_payload()
    assert isinstance(parts, list)
    found = [(part["content-range"], part.get_payload(decode=True)) for part in parts]
    size = len(data)
    assert [where for where, _ in found] == [
        f"bytes 0-9/{size}",
        f"bytes 50-59/{size}",
        f"bytes {size - 3}-{size - 1}/{size}",
    ]
    assert data[:10] in answer.data and data[50:60] in answer.data and data[-3:] in answer.data


IGNORED = [
    "lines=1-2",
    "bytes=",
    "bytes=-",
    "bytes=x-y",
    "bytes=9-5",
    "bytes=1-2;3-4",
    "bytes=" + ",".join(["0-"] * 16),  # more than the whole
    "bytes=" + ",".join(f"{at}-{at}" for at in range(17)),
]


@pytest.mark.parametrize("wanted", IGNORED)
def test_what_is_not_understood_is_ignored(served: Served, stored: tuple, wanted: str) -> None:
    _, digest, data = stored
    answer = get(served, f"/v2/a/blobs/{digest}", headers={"range": wanted})
    assert (answer.status, answer.data) == (200, data)


@pytest.mark.parametrize("wanted", ["bytes=999999999-", "bytes=-0"])
def test_a_part_that_is_not_there(served: Served, stored: tuple, wanted: str) -> None:
    _, digest, data = stored
    answer = get(served, f"/v2/a/blobs/{digest}", headers={"range": wanted})
    assert answer.status == 416 and b"RANGE_INVALID" in answer.data
    assert answer.headers["content-range"] == f"bytes */{len(data)}"


def test_if_range_sends_the_whole_when_it_changed(served: Served, stored: tuple) -> None:
    _, digest, data = stored
    etag = get(served, f"/v2/a/blobs/{digest}", "HEAD").headers["etag"]
    sizes = [
        len(
            get(
                served, f"/v2/a/blobs/{digest}", headers={"range": "bytes=0-9", "if-range": text}
            ).data
        )
        for text in (etag, '"other"', f"W/{etag}", "Wed, 25 Nov 2026 00:00:00 GMT")
    ]
    assert sizes == [10, len(data), len(data), len(data)]


@pytest.mark.parametrize(
    ("known", "status"),
    [('"{}"', 304), ('W/"{}"', 304), ('"x", "{}"', 304), ("*", 304), ('"x"', 200), ("{}", 200)],
)
def test_what_is_known_is_not_sent(served: Served, stored: tuple, known: str, status: int) -> None:
    _, digest, _ = stored
    headers = {"if-none-match": known.format(digest), "range": "bytes=0-9"}
    expected = 206 if status == 200 else status
    answer = get(served, f"/v2/a/blobs/{digest}", headers=headers)
    assert answer.status == expected
    if status == 304:
        assert answer.data == b"" and "immutable" in answer.headers["cache-control"]


def test_head_is_get_without_a_body(served: Served, stored: tuple) -> None:
    _, digest, data = stored
    answers = [get(served, f"/v2/a/blobs/{digest}", method) for method in ("HEAD", "GET")]
    plain = [{k: v for k, v in answer.headers.items() if k != "date"} for answer in answers]
    assert plain[0] == plain[1] and (answers[0].data, answers[1].data) == (b"", data)


def test_a_file_that_lost_its_end_is_not_called_whole(tmp_path: Path) -> None:
    source = MemorySource()
    digest = source.blob("a", DATA, tmp_path / "blob")
    with serving(source) as served:
        with open(tmp_path / "blob", "r+b") as file:
            file.truncate(200_000)
        with pytest.raises(Exception, match=r"IncompleteRead|Connection broken|reset"):
            _ = get(served, f"/v2/a/blobs/{digest}").data
        assert get(served, "/healthz").status == 200


def test_a_list_of_tags_says_where_it_goes_on() -> None:
    source = MemorySource()
    for tag in ("a", "b", "c"):
        source.tag("team/x", tag)
    path, found = "/v2/team/x/tags/list?n=2", []
    with serving(source) as served:
        while path:
            answer = get(served, path)
            found += answer.json()["tags"]
            path = answer.headers.get("link", "").partition("<")[2].partition(">")[0]
    assert found == ["a", "b", "c"]


# --- updates -------------------------------------------------------------------------------------


@pytest.fixture
def updates() -> tuple[MemorySource, Digest]:
    source = MemorySource()
    old = source.tag("a", "v1", b'{"v":1}')
    source.tag("a", "v2", b'{"v":2}')
    source.update("a", "v2", old, b"0123456789")
    return source, old


def test_an_update_goes_on_where_it_was_cut(updates: tuple[MemorySource, Digest]) -> None:
    source, old = updates
    with serving(source) as served:
        path = f"/v1/a/updates/v2?from={old}"
        first = get(served, path)
        headers = {"range": "bytes=4-", "if-range": first.headers["etag"]}
        rest = get(served, path, headers=headers)
        source.update("a", "v2", old, b"another one")
        other = get(served, path, headers=headers)
    assert (first.data, rest.status, rest.data) == (b"0123456789", 206, b"456789")
    assert (other.status, other.data) == (200, b"another one")
    assert first.headers["docker-content-digest"] == str(sha256_digest(b'{"v":2}'))


def test_a_body_of_several_is_as_one(
    updates: tuple[MemorySource, Digest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes, a large piece of a file, a small one, bytes: whole, and every kind of part."""
    source, old = updates
    file = tmp_path / "file"
    file.write_bytes(b"not of it" + DATA)
    large = Blob(200_000, "", file, refuse, start=9)
    small = Blob(50, "", file, refuse, start=9 + 300)
    whole = DATA[:500] + DATA[:200_000] + DATA[300:350] + DATA[:7000]
    body = Joined(len(whole), (DATA[:500], large, small, DATA[:7000]))
    answer = UpdateAnswer(source.resolve("a", "v2") or old, body, (), True, "tag")
    monkeypatch.setattr(source, "read_update", lambda *_: answer)
    with serving(source) as served:
        path = f"/v1/a/updates/v2?from={old}"
        assert get(served, path).data == whole
        for start, stop in [(0, 3), (400, 700), (499, 500), (500, 501), (200_400, 200_560)]:
            rest = get(served, path, headers={"range": f"bytes={start}-{stop - 1}"})
            assert (rest.status, rest.data) == (206, whole[start:stop])
        rest = get(served, path, headers={"range": "bytes=100-", "if-range": '"tag"'})
        assert rest.data == whole[100:]


def refuse(*_: int) -> Iterator[bytes]:
    raise AssertionError("a file is not read by parts of its source")


@given(
    st.lists(st.tuples(st.binary(max_size=20), st.booleans()), max_size=5),
    st.data(),
)
def test_any_part_of_a_joined_body(parts: list[tuple[bytes, bool]], draw: st.DataObject) -> None:
    whole = b"".join(data for data, _ in parts)
    bodies = [
        Blob(len(data), "", Path(f"/{at}"), refuse) if is_blob else data
        for at, (data, is_blob) in enumerate(parts)
    ]
    start = draw.draw(st.integers(0, len(whole)))
    count = draw.draw(st.integers(0, len(whole) - start))
    found = b""
    for piece in cut(Joined(len(whole), tuple(bodies)), start, count):
        if isinstance(piece, tuple):
            blob, at, size = piece
            found += parts[int(str(blob.path)[1:])][0][at : at + size]
        else:
            found += piece
    assert found == whole[start : start + count]


def test_what_is_up_to_date_is_told_so(updates: tuple[MemorySource, Digest]) -> None:
    source, old = updates
    with serving(source) as served:
        answer = get(served, f"/v1/a/updates/v1?from={old}")
    assert (answer.status, answer.headers["docker-content-digest"]) == (304, str(old))


@pytest.mark.parametrize(
    "query",
    [
        "from=x",
        "from=" + ",".join([str(sha256_digest(b""))] * 33),
        "within=x",
        "wait=-1",
        "wait=nan",
    ],
)
def test_bad_questions_are_refused(updates: tuple[MemorySource, Digest], query: str) -> None:
    with serving(updates[0]) as served:
        assert get(served, f"/v1/a/updates/v2?{query}").status == 400


def test_a_node_that_holds_nothing_may_ask(updates: tuple[MemorySource, Digest]) -> None:
    source, _ = updates
    source.update("a", "v2", None, b"all of it")
    with serving(source) as served:
        assert get(served, "/v1/a/updates/v2?from=").data == b"all of it"


# --- spans ---------------------------------------------------------------------------------------


@given(st.text(max_size=40), st.integers(0, 1000))
def test_no_header_makes_spans_outside(text: str, size: int) -> None:
    for header in (text, f"bytes={text}"):
        spans = find_spans(header, size) or []
        assert all(start >= 0 and count > 0 and start + count <= size for start, count in spans)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=5))
def test_spans_are_what_was_asked_for(pairs: list[tuple[int, int]]) -> None:
    header = "bytes=" + ",".join(f"{first}-{first + more}" for first, more in pairs)
    want = [(first, min(first + more + 1, 50) - first) for first, more in pairs if first < 50]
    if len(want) > 1 and sum(count for _, count in want) > 50:
        assert find_spans(header, 50) is None
    else:
        assert find_spans(header, 50) == want
