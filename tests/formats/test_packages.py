"""Which packages are in an image, by what their installers leave."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.formats import tar
from layerkit.formats.packages import Package, find_packages
from layerkit.formats.tar import TarEntry, write_tar
from layerkit.formats.tree import read_tree

PIP = "usr/lib/python3.11/site-packages"
OS = {"etc/os-release": b'ID=debian\nVERSION_ID="12"\n'}


def packages_of(files: dict[str, bytes]) -> list[Package]:
    return find_packages(read_tree([write_tar(entries(files))]))


def entries(files: dict[str, bytes]) -> list[TarEntry]:
    return [TarEntry(path, tar.FILE, data=data) for path, data in files.items()]


def jar(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for path, data in files.items():
            made.writestr(path, data)
    return out.getvalue()


def pom(group: str, name: str, version: str) -> dict[str, bytes]:
    text = f"#Created by Maven\ngroupId={group}\nartifactId = {name}\nversion={version}\n"
    return {f"META-INF/maven/{group}/{name}/pom.properties": text.encode()}


def test_debians_and_distroless() -> None:
    status = (
        b"Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n"
        b"Description: C\n Package: not this\n\n"
        b"Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
    )
    small = b"Package: tzdata\nVersion: 2024a\nArchitecture: all\n"
    files = OS | {
        "var/lib/dpkg/status": status,
        "var/lib/dpkg/status.d/tzdata": small,
        "var/lib/dpkg/status.d/tzdata.md5sums": b"Package: wrong\nVersion: 1\n",
    }
    found = packages_of(files)
    assert [(one.name, one.version, one.group) for one in found] == [
        ("libc6", "2.36-9", "debian"),
        ("tzdata", "2024a", "debian"),
    ]
    assert found[0].qualifiers == (("arch", "amd64"), ("distro", "debian-12"))


def test_alpines() -> None:
    release = {"usr/lib/os-release": b"ID=alpine\nVERSION_ID=3.20.1\n"}
    listed = {"lib/apk/db/installed": b"C:Q1x=\nP:musl\nV:1.2.5-r0\nA:x86_64\nF:lib\nR:x\n\n"}
    about = (("arch", "x86_64"), ("distro", "alpine-3.20.1"))
    path = "lib/apk/db/installed"
    assert packages_of(release | listed) == [
        Package("apk", "alpine", "musl", "1.2.5-r0", path, about)
    ]


def test_pythons() -> None:
    files = {
        f"{PIP}/flask-3.0.0.dist-info/METADATA": b"Name: Flask\nVersion: 3.0.0\n\nName: no",
        f"{PIP}/old.egg-info/PKG-INFO": b"Version: 1\nName: old\n",
        "usr/lib/python3/dist-packages/six-1.16.egg-info": b"Name: six\nVersion: 1.16\n",
        f"{PIP}/broken.dist-info/METADATA": b"\xff\xfe",
        "app/METADATA": b"Name: none\nVersion: 1\n",
    }
    found = {(one.name, one.version) for one in packages_of(files)}
    assert found == {("Flask", "3.0.0"), ("old", "1"), ("six", "1.16")}


def test_nodes() -> None:
    def about(name: str, version: object = "1.0.0") -> bytes:
        return json.dumps({"name": name, "version": version}).encode()

    files = {
        "app/package.json": about("own"),
        "app/node_modules/express/package.json": about("express", "4.19.2"),
        "app/node_modules/@babel/core/package.json": about("@babel/core"),
        "app/node_modules/express/node_modules/ms/package.json": about("ms"),
        "app/node_modules/express/lib/package.json": about("inside"),
        "app/node_modules/.pnpm/a@1/node_modules/a/package.json": about("a"),
        "app/node_modules/.package-lock.json": about("lock"),
        "app/node_modules/odd/package.json": about("odd", 1),
        "app/node_modules/list/package.json": b"[]",
        "app/node_modules/deep/package.json": b"[" * 100_000,
    }
    found = {(one.group, one.name) for one in packages_of(files)}
    assert found == {("", "express"), ("@babel", "core"), ("", "ms"), ("", "a")}


def test_javas() -> None:
    shaded = jar(**pom("org.a", "one", "1.0"), **pom("org.b", "two", "2.0"))
    boot = jar(
        **{"BOOT-INF/lib/lib.jar": jar(**pom("org.c", "three", "3"))}, **pom("x", "app", "4")
    )
    folded = b"Manifest-Version: 1.0\r\nBundle-SymbolicName: com.lo\r\n ng;singleton:=true\r\n"
    files = {
        "app/lib/shaded.jar": shaded,
        "app/app.jar": boot,
        "app/lib/guava-32.1.2-jre.jar": jar(**{"META-INF/MANIFEST.MF": b"A: b\n"}),
        "app/lib/bundle.jar": jar(
            **{"META-INF/MANIFEST.MF": folded + b"Bundle-Version: 7\r\n\r\n"}
        ),
        "app/lib/bare.jar": jar(**{"A.class": b""}),
    }
    found = {(one.kind, one.group, one.name, one.version, one.path) for one in packages_of(files)}
    inside = "META-INF/maven"
    assert found == {
        ("maven", "org.a", "one", "1.0", f"app/lib/shaded.jar!/{inside}/org.a/one/pom.properties"),
        ("maven", "org.b", "two", "2.0", f"app/lib/shaded.jar!/{inside}/org.b/two/pom.properties"),
        ("maven", "x", "app", "4", f"app/app.jar!/{inside}/x/app/pom.properties"),
        (
            *("maven", "org.c", "three", "3"),
            f"app/app.jar!/BOOT-INF/lib/lib.jar!/{inside}/org.c/three/pom.properties",
        ),
        ("", "", "guava", "32.1.2-jre", "app/lib/guava-32.1.2-jre.jar"),
        ("", "", "com.long", "7", "app/lib/bundle.jar"),
    }


def test_a_jar_that_unpacks_to_too_much_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerkit.formats.packages.MAX_TEXT_SIZE", 1000)
    long = pom("org.a", "one", "1.0" + "0" * 2000)
    assert packages_of({"app/a.jar": jar(**long)}) == []
    monkeypatch.setattr("layerkit.formats.packages.MAX_ENTRIES", 1)
    assert packages_of({"app/a.jar": jar(**pom("org.a", "one", "1"), **{"b": b""})}) == []


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_damaged_files_raise_nothing(junk: bytes, at: int, byte: int) -> None:
    whole = bytearray(jar(**pom("org.a", "one", "1.0")))
    whole[at % len(whole)] = byte
    names = ("var/lib/dpkg/status", "lib/apk/db/installed", f"{PIP}/a.dist-info/METADATA")
    files = {name: junk for name in (*names, "a/node_modules/a/package.json", "a/b.jar")}
    packages_of(files | {"a/c.jar": bytes(whole), "etc/os-release": junk})
