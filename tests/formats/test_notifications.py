"""Notifications: what real registries sent, what is left out, what is none."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.errors import FormatError
from layerkit.formats.notifications import (
    MAX_EVENT_COUNT,
    MAX_NOTIFICATION_SIZE,
    Pushed,
    parse_notification,
)

FOLDER = Path(__file__).parent.parent / "vectors/notifications"
FN = Pushed("team/fn", "v1")


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("docker-registry-2.8-tag", (FN,)),  # events.v1
        ("docker-registry-2.8-blob", ()),
        ("distribution-3.1-tag", (FN,)),  # events.v2
        ("harbor-push", (FN,)),
    ],
)
def test_what_registries_send(name: str, want: tuple[Pushed, ...]) -> None:
    assert parse_notification((FOLDER / f"{name}.json").read_bytes()) == want


def envelope(*targets: object, action: str = "push") -> bytes:
    return json.dumps({"events": [{"action": action, "target": one} for one in targets]}).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b'{"events": []}',
        b'{"events": null}',
        envelope({"repository": "fn", "tag": "v1"}, action="pull"),
        envelope({"repository": "fn", "tag": "v1"}, action="delete"),
        envelope({"repository": "fn", "digest": "sha256:00"}),
        envelope({"repository": "fn", "tag": ""}),
        envelope({"repository": "../fn", "tag": "v1"}),
        envelope({"repository": "fn", "tag": "v1/../../x"}),
        envelope({"repository": 7, "tag": ["v1"]}),
        envelope("fn:v1", None, []),
        b'{"events": ["push", 1, null]}',
        b'{"type": "DELETE_ARTIFACT", "event_data": {"repository": {"repo_full_name": "fn"},'
        b' "resources": [{"tag": "v1"}]}}',
        b'{"type": "PUSH_ARTIFACT", "event_data": "none"}',
    ],
)
def test_an_event_of_no_use_is_left_out(raw: bytes) -> None:
    assert parse_notification(raw) == ()


def test_each_tag_once_in_the_order_of_the_body() -> None:
    raw = envelope(
        {"repository": "b", "tag": "v2"}, {"repository": "a", "tag": "v1"}, {"no": "target"},
        {"repository": "b", "tag": "v2"},
    )  # fmt: skip
    assert parse_notification(raw) == (Pushed("b", "v2"), Pushed("a", "v1"))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"[]",
        b'"events"',
        b"{}",
        b'{"events": {}}',
        b'{"events": ' + b"[" * 100_000,
        json.dumps({"events": [0] * (MAX_EVENT_COUNT + 1)}).encode(),
        b" " * (MAX_NOTIFICATION_SIZE + 1),
        b'{"event_data": {"resources": "all"}, "type": "PUSH_ARTIFACT"}',
    ],
)
def test_what_is_no_notification(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_notification(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["events", "action", "target", "repository", "tag", "event_data"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_only_format_errors(document: object) -> None:
    with contextlib.suppress(FormatError):
        parse_notification(json.dumps(document).encode())
