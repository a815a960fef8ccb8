"""Asks an agent on its unix socket (`edges.localapi`): a document there, a document back."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from layerkit.edges.forked import error_of
from layerkit.errors import FormatError, LayerkitError, NotFoundError, RemoteError

__all__ = ["ask_agent"]

MAX_ANSWER_SIZE: Final = 64 << 20
Document = Mapping[str, Any]


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket: the library's own way to say so is to override `connect`."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask_agent(
    socket_path: Path,
    method: str,
    path: str,
    document: Document | None = None,
    timeout: float | None = 30.0,
) -> dict[str, Any] | str:
    """Ask the agent at `socket_path`; its document, or its text. Raises what it answered."""
    body = json.dumps(document).encode() if document is not None else None
    connection = _Connection(socket_path, timeout)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        raw = response.read(MAX_ANSWER_SIZE + 1)
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        raise NotFoundError(
            f"no agent answers at {socket_path}",
            cause=str(exc.strerror),
            hint="run 'layerkit agent', or name its --socket",
        ) from exc
    except PermissionError as exc:
        raise RemoteError(f"the agent at {socket_path} is somebody else's") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise RemoteError(f"the agent at {socket_path} does not answer", cause=str(exc)) from exc
    finally:
        connection.close()
    if response.status == 200 and not response.headers.get_content_type().endswith("json"):
        return raw.decode("utf-8", "replace")
    answer = _parse(raw)
    if response.status != 200:
        raise _error_of(answer, response.status)
    return answer


def _error_of(answer: Document, status: int) -> LayerkitError:
    try:
        entry = answer["errors"][0]
        return error_of({**entry, "cause": entry.get("detail", "")})
    except (KeyError, IndexError, TypeError):
        return RemoteError(f"the agent answered with status {status}")


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise FormatError("the agent's answer is not JSON", cause=str(exc)[:200]) from exc
    if not isinstance(document, dict):
        raise FormatError("the agent's answer is not a JSON object")
    return document
