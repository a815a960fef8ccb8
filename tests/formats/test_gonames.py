"""Symbol names to import paths, import paths to roles."""

from __future__ import annotations

import pytest

from layerkit.formats.buildinfo import BuildInfo, Module
from layerkit.formats.gonames import BASE, CODE, DEPS, SHARED, Owners, packages_of, unescape_path

INFO = BuildInfo(
    "go1.26.8",
    "example.com/app/cmd/fn",
    Module("example.com/app", "(devel)"),
    (Module("example.com/app/plugin", "v1.0.0"), Module("gopkg.in/yaml.v3", "v3.0.1")),
)

NAMES = {
    "main.main": {"main"},
    "main.main.func1": {"main"},
    "main.glob..func1": {"main"},
    "main..inittask": {"main"},
    "runtime.memmove": {"runtime"},
    "net/http.(*Server).Serve-fm": {"net/http"},
    "example.com/app/x%2ev2.T.M": {"example.com/app/x.v2"},
    "gopkg.in/yaml%2ev3.(*parser).anchor-range1": {"gopkg.in/yaml.v3"},
    "github.com/go-a/b-c.F": {"github.com/go-a/b-c"},
    "slices.SortFunc[go.shape.[]example.com/app.T,go.shape.int]": {"slices", "example.com/app"},
    "sync/atomic.(*Pointer[go.shape.struct { runtime.r int; a.b/c.d *e.f/g%2eh.i }]).Load": {
        "sync/atomic", "runtime", "a.b/c", "e.f/g.h",
    },
    'm.F[go.shape.struct { X string "json:\\"x/y.z\\"" }]': {"m"},
    "iter.Pull[<-chan example.com/x.T,chan<- y.T]": {"iter", "example.com/x", "y"},
    "type:.eq.example.com/app.T": {"example.com/app"},
    "type:.eq.[8]internal/cpu.option": {"internal/cpu"},
    "type:.hash.struct { main.a string; net/http.b int }": {"main", "net/http"},
    "type:.eq.[2]interface {}": set(),
    "go:(*struct { sync.Mutex; a.b/c.n int }).Lock": {"sync", "a.b/c"},
    "go:itab.*example.com/app.T,io.Reader": {"example.com/app", "io"},
    "go:main.inittasks": {"main"},
    "go:textfipsstart": set(),
    "cmpbody": set(),
    "_rt0_amd64_linux": set(),
    "": set(),
}  # fmt: skip


@pytest.mark.parametrize(("symbol", "packages"), NAMES.items())
def test_packages_of_a_symbol(symbol: str, packages: set[str]) -> None:
    assert packages_of(symbol) == packages


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        ("a.b/c", "a.b/c"),
        ("a.b/c%2ed", "a.b/c.d"),
        ("a/%c3%a9", "a/é"),
        ("a/%ff", "a/ÿ"),  # not UTF-8: kept byte by byte
        ("a%2", "a%2"),
    ],
)
def test_escapes_are_undone(prefix: str, path: str) -> None:
    assert unescape_path(prefix) == path


PATHS = {
    "main": CODE,
    "example.com/app": CODE,
    "example.com/app/internal/x": CODE,
    "example.com/app/plugin": DEPS,  # the longest module path decides
    "example.com/app/plugin/y": DEPS,
    "example.com/application": BASE,  # no module has it: vendored by the standard library
    "gopkg.in/yaml.v3": DEPS,
    "net/http": BASE,
    "vendor/golang.org/x/net/idna": BASE,
    "golang.org/x/net/idna": BASE,
    "example.com/app/vendor/other.org/z": DEPS,
}


@pytest.mark.parametrize(("path", "role"), PATHS.items())
def test_role_of_a_package(path: str, role: int) -> None:
    assert Owners(INFO).role_of_package(path) == role


@pytest.mark.parametrize(("path", "role"), {"net/http": BASE, "a.b/c": DEPS, "main": CODE}.items())
@pytest.mark.parametrize("info", [None, BuildInfo("go1.26.8", "command-line-arguments")])
def test_without_modules_a_dot_means_deps(info: BuildInfo | None, path: str, role: int) -> None:
    assert Owners(info).role_of_package(path) == role


def test_a_module_named_like_a_package_does_not_take_it() -> None:
    """In module `log`, whose main package is its root, `log` is still the standard library's."""
    owners = Owners(BuildInfo("go1.26.8", "log", Module("log", "(devel)")))
    assert [owners.role_of_package(path) for path in ("log", "log/store")] == [BASE, CODE]


@pytest.mark.parametrize(
    ("symbol", "role"),
    [
        ("slices.Sort[go.shape.int]", BASE),
        ("slices.Sort[gopkg.in/yaml%2ev3.Node]", DEPS),
        ("maps.Keys[gopkg.in/yaml%2ev3.Node,example.com/app.T]", CODE),
        ("cmpbody", SHARED),
    ],
)
def test_a_symbol_belongs_to_the_outermost_package_that_it_names(symbol: str, role: int) -> None:
    assert Owners(INFO).role_of_symbol(symbol) == role
