"""OCI documents: round trips, canonical bytes, and only FormatError for anything else."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.errors import FormatError, UsageError
from layerkit.formats import oci

LAYER = oci.describe(b"tar", oci.LAYER_GZIP, {oci.ANNOTATION_ROLE: "code"})
MANIFEST = oci.Manifest(
    oci.EMPTY_DESCRIPTOR,
    (LAYER,),
    {"k": "ü"},
    oci.CHUNKS_ARTIFACT,
    oci.describe(b"image", oci.MANIFEST),
)
INDEX = oci.Index(
    (oci.describe(b"m", oci.MANIFEST, platform=oci.Platform("linux", "arm", "v7")),), {"a": "b"}
)
CONFIG = oci.ImageConfig(
    oci.Platform("linux", "amd64"),
    (LAYER.digest,),
    ("/app/hello",),
    ("-v",),
    ("PATH=/bin",),
    "65532:65532",
    "/",
    ("8080/tcp",),
    {"team": "x"},
    ("layerkit",),
    "1970-01-01T00:00:00Z",
)


def test_manifest_round_trip() -> None:
    assert oci.parse_manifest(oci.serialize_manifest(MANIFEST)) == MANIFEST


def test_index_round_trip() -> None:
    assert oci.parse_index(oci.serialize_index(INDEX)) == INDEX


def test_an_index_of_nothing_may_be_null() -> None:
    raw = b'{"schemaVersion":2,"manifests":null}'
    assert oci.parse_index(raw) == oci.Index(())
    with pytest.raises(FormatError):
        oci.parse_index(b'{"schemaVersion":2}')


def test_config_round_trip() -> None:
    assert oci.parse_config(oci.serialize_config(CONFIG)) == CONFIG


def test_json_is_canonical() -> None:
    assert oci.serialize_json({"b": [1, 2], "a": "ü"}) == '{"a":"ü","b":[1,2]}'.encode()


def test_empty_descriptor_is_the_one_of_the_specification() -> None:
    assert str(oci.EMPTY_DESCRIPTOR.digest) == (
        "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )


BAD = [
    b"",
    b"\xff",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b'{"schemaVersion":2}',
    b'{"schemaVersion":1,"config":{},"layers":[]}',
    b'{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:00","size":1},"layers":[]}',
    b'{"schemaVersion":2,"mediaType":7,"layers":[],"manifests":[]}',
    b"9" * 10_000,
]


@pytest.mark.parametrize("parse", [oci.parse_manifest, oci.parse_index, oci.parse_config])
@pytest.mark.parametrize("raw", BAD, ids=range(len(BAD)))
def test_bad_documents_are_format_errors(parse, raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse(raw)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("config", "size"), -1),
        (("config", "size"), True),
        (("config", "size"), 1e9),
        (("config", "size"), 1 << 64),
        (("config", "digest"), "b3:" + "0" * 64),
        (("config", "digest"), "sha256:" + "G" * 64),
        (("config", "mediaType"), None),
        (("config", "mediaType"), "text/plain\r\nset-cookie: a=b"),
        (("config", "mediaType"), "text/pl\u00e4in"),
        (("layers",), {}),
        (("annotations",), {"a": 1}),
        (("annotations",), {"a": "\ud800"}),
        (("subject",), []),
        (("mediaType",), oci.INDEX),
    ],
)
def test_wrong_types_are_format_errors(path: tuple[str, ...], value: object) -> None:
    document = json.loads(oci.serialize_manifest(MANIFEST))
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(FormatError):
        oci.parse_manifest(json.dumps(document).encode())


def test_documents_over_the_limit_are_refused_before_parsing() -> None:
    with pytest.raises(FormatError, match="over its limit"):
        oci.parse_manifest(b" " * (oci.MAX_DOCUMENT_SIZE + 1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["schemaVersion", "config", "layers", "manifests", "rootfs", "diff_ids", "size"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_only_format_errors(value: object) -> None:
    raw = json.dumps(value).encode()
    for parse in (oci.parse_manifest, oci.parse_index, oci.parse_config, oci.parse_layout_marker):
        with contextlib.suppress(FormatError):
            parse(raw)


def test_platform_needs_two_or_three_words() -> None:
    with pytest.raises(UsageError):
        oci.parse_platform("linux")
