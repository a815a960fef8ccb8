"""layerkit.toml: every key, and errors that name the key."""

from __future__ import annotations

import pytest

from layerkit.errors import UsageError
from layerkit.formats.buildconfig import BuildSettings, parse_settings

WHOLE = b"""
[build]
go = "1.26.8"
package = "./cmd/hello"
flags = ["-gcflags=all=-l", "-ldflags=-X main.v=1"]
tags = ["netgo"]
env = { GOAMD64 = "v3" }
[image]
user = "1000:1000"
entrypoint = ["/app/hello", "-x"]
cmd = ["y"]
env = { LOG = "info" }
labels = { team = "f" }
annotations = { "org.opencontainers.image.source" = "s" }
[layers]
deps = ["models/*"]
code = ["config.json"]
"""


def test_nothing_gives_the_defaults() -> None:
    assert parse_settings(b"") == BuildSettings()


def test_every_key_is_read() -> None:
    assert parse_settings(WHOLE) == BuildSettings(
        "1.26.8",
        "./cmd/hello",
        ("-gcflags=all=-l",),
        "-X main.v=1",
        ("netgo",),
        {"GOAMD64": "v3"},
        "1000:1000",
        ("/app/hello", "-x"),
        ("y",),
        {"LOG": "info"},
        {"team": "f"},
        {"org.opencontainers.image.source": "s"},
        ("models/*",),
        ("config.json",),
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[biuld]", "biuld"),
        ("[build]\ntag = []", "build.tag"),
        ("[image]\nports = []\nUser = ''", "image.User, image.ports"),
        ("build = 1", "build is not a table"),
        ("[build]\nflags = '-v'", "build.flags"),
        ("[build]\nflags = ['-o=x']", "-o=x"),
        ("[build]\nflags = ['--toolexec=x']", "toolexec"),
        ("[build]\nflags = ['fast']", "does not start"),
        ("[build]\ngo = 1.26", "build.go"),
        ("[build]\ngo = 'latest'", "build.go"),
        ("[build]\npackage = '../x'", "build.package"),
        ("[build]\npackage = './...'", "build.package"),
        ("[build]\nenv = { CGO_ENABLED = '1' }", "build.env.CGO_ENABLED"),
        ("[build]\nenv = { A = 1 }", "build.env"),
        ("[build]\nenv = { 'A=B' = '1' }", "A=B"),
        ("[image]\nuser = 'a b'", "image.user"),
        ("[image]\nlabels = []", "image.labels"),
        ("[layers]\ndeps = ['']", "layers.deps"),
        ("[", "not TOML"),
        ("\xff", "not TOML"),
    ],
)
def test_errors_name_the_key(text: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_settings(text.encode("latin-1"))
    assert named in caught.value.message
