"""Temporary: a source of the old shape as one of the new. Goes when jobs/serve has the new one."""

from __future__ import annotations

from typing import Any

from layerkit.edges.http.source import Blob, UpdateAnswer
from layerkit.errors import NotFoundError


class OldSource:
    def __init__(self, source: Any) -> None:
        self.__source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__source, name)

    def version(self):
        info = (self.__source._path / "index.json").stat()
        return (info.st_ino, info.st_mtime_ns, info.st_size)

    def check_ready(self):
        self.__source._view()

    def resolve(self, name, ref):
        return self.__source._repository(name).tags.get(ref)

    def open_blob(self, name, digest):
        path = self.__source.find_blob(name, digest)

        def read(offset, size):
            with open(path, "rb") as file:
                file.seek(offset)
                yield file.read(size)

        return Blob(path.stat().st_size, "", path, read)

    def role_of_chunks(self, name, digest):
        return ""

    def read_change(self, name, digest, have, caller):
        return self.__source.read_change(name, digest, have)

    def read_listed(self, name, digest, places, near, caller):
        return self.__source.read_listed(name, digest, places, near)

    def read_update(self, name, ref, have, platform, caller, within):
        if not have:
            raise NotFoundError("no update from nothing")
        digest, raw = self.__source.read_update(name, ref, have, platform)
        return UpdateAnswer(digest, raw, (), raw is not None)

    def describe(self, caller):
        return ()
