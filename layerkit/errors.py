"""The error tree: what went wrong, whose fault it is, and what a caller may do about it.

Floor 0; imports nothing of ours. Each class sets four facts:

* ``code``         OCI-style upper snake word: the same on the terminal, in ``--json`` and in HTTP
* ``exit_status``  of the command line (docs/errors.md)
* ``http_status``  of the chunk server
* ``retriable``    may the same call succeed later?

Texts are built where the error is raised: lower case, no full stop, the thing, got, want, where.
"""

from __future__ import annotations

__all__ = [
    "BuildError",
    "BusyError",
    "CgoError",
    "ChunkDigestError",
    "FormatError",
    "IntegrityError",
    "LayerkitError",
    "NotFoundError",
    "PartialError",
    "RemoteDeniedError",
    "RemoteError",
    "RemoteLimitError",
    "SignatureError",
    "StoreChangedError",
    "StoreError",
    "StoreFullError",
    "StoreLockedError",
    "ToolError",
    "ToolMissingError",
    "UnauthorizedError",
    "UsageError",
    "VersionError",
]


class LayerkitError(Exception):
    """Something went wrong that layerkit has no narrower word for."""

    code = "UNKNOWN"
    exit_status = 1
    http_status = 500
    retriable = False

    def __init__(self, message: str, *, cause: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint


class UsageError(LayerkitError):
    """The command or the request asks for something that makes no sense."""

    code = "USAGE_INVALID"
    exit_status = 2
    http_status = 400


class PartialError(LayerkitError):
    """Part of the work was done, part was not; the message says which."""

    code = "PARTLY_DONE"
    exit_status = 3
    http_status = 500


class NotFoundError(LayerkitError):
    """The named image, file, chunk or repository does not exist here."""

    code = "NOT_FOUND"
    exit_status = 4
    http_status = 404


class FormatError(LayerkitError):
    """Bytes do not follow the format that they claim; `offset` says where it was noticed."""

    code = "FORMAT_INVALID"
    exit_status = 5
    http_status = 400

    def __init__(self, message: str, *, offset: int = 0, cause: str = "", hint: str = "") -> None:
        super().__init__(message, cause=cause or f"at offset {offset}", hint=hint)
        self.offset = offset


class VersionError(FormatError):
    """The bytes are of a format version that this layerkit does not know."""

    code = "VERSION_UNKNOWN"


class IntegrityError(LayerkitError):
    """Bytes do not hash to the digest that names them."""

    code = "DIGEST_INVALID"
    exit_status = 5
    http_status = 502
    retriable = True

    def __init__(
        self, message: str, *, got: str = "", want: str = "", cause: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, cause=cause or f"got {got}, want {want}", hint=hint)
        self.got = got
        self.want = want


class ChunkDigestError(IntegrityError):
    """A chunk's bytes do not hash to its id."""

    code = "CHUNK_DIGEST_INVALID"


class SignatureError(LayerkitError):
    """An image is not signed by a key that it must be signed by."""

    code = "SIGNATURE_INVALID"
    exit_status = 5
    http_status = 403
    retriable = True


class RemoteError(LayerkitError):
    """The server or registry failed or could not be reached."""

    code = "REMOTE_FAILED"
    exit_status = 6
    http_status = 502
    retriable = True


class RemoteDeniedError(RemoteError):
    """The server or registry refused the credentials."""

    code = "DENIED"
    http_status = 403
    retriable = False


class UnauthorizedError(RemoteDeniedError):
    """The request shows no token, or one that the server does not know."""

    code = "UNAUTHORIZED"
    http_status = 401


class BusyError(RemoteError):
    """Who asks has used up what they may ask for; after `seconds` (0: not said) it works."""

    code = "TOOMANYREQUESTS"
    http_status = 429
    seconds = 0.0


class RemoteLimitError(RemoteError):
    """A peer sent more than the limit allows."""

    code = "LIMIT_EXCEEDED"
    http_status = 413
    retriable = False


class StoreError(LayerkitError):
    """The local store or disk failed."""

    code = "STORE_FAILED"
    exit_status = 7


class StoreFullError(StoreError):
    """The disk or the quota is full."""

    code = "STORE_FULL"
    http_status = 507


class StoreChangedError(StoreError):
    """What a pull relied on has gone from the store meanwhile; another try fetches it."""

    code = "STORE_CHANGED"
    http_status = 503
    retriable = True


class StoreLockedError(StoreError):
    """Another process holds the lock."""

    code = "STORE_LOCKED"
    http_status = 503
    retriable = True


class ToolError(LayerkitError):
    """A program that layerkit runs (go, docker, ctr) failed."""

    code = "TOOL_FAILED"
    exit_status = 8

    def __init__(
        self,
        message: str,
        *,
        argv: tuple[str, ...] = (),
        status: int = 0,
        stderr_tail: str = "",
        cause: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, cause=cause or stderr_tail, hint=hint)
        self.argv = argv
        self.status = status
        self.stderr_tail = stderr_tail


class ToolMissingError(ToolError):
    """A program that layerkit needs is not installed, or too old."""

    code = "TOOL_MISSING"


class BuildError(ToolError):
    """The Go sources do not build."""

    code = "BUILD_FAILED"


class CgoError(BuildError):
    """A package needs cgo, which a static build leaves out."""

    code = "CGO_REQUIRED"
