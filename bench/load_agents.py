"""Many light agents in one process: load_agents.py HOST PORT PATH COUNT SHA256 START

Each opens a connection, asks for an update, reads it, checks every byte of it by its digest, and
closes. All begin at START (seconds of the monotonic clock, which all processes of a machine share).
Prints a JSON document: when the last was done, how many failed and why, the seconds of each.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time

SECONDS = 60.0  # then an agent has failed


async def ask(host: str, port: int, request: bytes, want: str) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        if not lines[0].startswith(b"http/1.1 200"):
            raise ValueError(lines[0].decode("latin-1"))
        (length,) = (line for line in lines if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(length.partition(b":")[2]))
        if hashlib.sha256(body).hexdigest() != want:
            raise ValueError("other bytes")
    finally:
        writer.close()


async def main(argv: list[str]) -> None:
    host, port, path, count, want, start = argv
    request = f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nuser-agent: layerkit\r\n\r\n".encode()
    failures: list[str] = []
    seconds: list[float] = []

    async def agent() -> None:
        begin = time.monotonic()
        try:
            await asyncio.wait_for(ask(host, int(port), request, want), SECONDS)
            seconds.append(time.monotonic() - begin)
        except (OSError, EOFError, ValueError, TimeoutError) as exc:
            failures.append(f"{type(exc).__name__}: {exc}")

    await asyncio.sleep(float(start) - time.monotonic())
    await asyncio.gather(*(agent() for _ in range(int(count))))
    document = {"end": time.monotonic(), "failures": failures, "seconds": seconds}
    print(json.dumps(document))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
