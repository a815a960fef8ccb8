"""What a hook is told: the registry it works for, how far back, where its queue lies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from layerkit.errors import UsageError

__all__ = ["DEFAULT_DELTA_COUNT", "HookSettings", "read_secret"]

DEFAULT_DELTA_COUNT: Final = 3  # versions: nodes that watch have one of them
MIN_SECRET_SIZE: Final = 16  # characters
MAX_SECRET_SIZE: Final = 4096


@dataclass(frozen=True, slots=True)
class HookSettings:
    """Values as a person gives them."""

    registry: str  # https://host
    queue: Path
    repositories: tuple[str, ...] = ("*",)  # patterns
    delta_count: int = DEFAULT_DELTA_COUNT
    job_count: int = 1  # at once
    job_seconds: float = 1800.0  # after which a job is ended, and tried again
    scan_seconds: float = 3600.0  # between two looks at all tags; 0: none
    config: Path | None = None  # docker's config.json, if not the usual one
    ca: Path | None = None
    realms: tuple[str, ...] = ()

    def as_job(self) -> dict[str, object]:
        """What a job needs of it, as JSON."""
        known = asdict(self)
        return {
            "registry": self.registry,
            "config": str(known["config"] or ""),
            "ca": str(known["ca"] or ""),
            "realms": list(self.realms),
            "count": self.delta_count,
        }


def read_secret(raw: bytes, path: Path) -> str:
    """The secret in a file: one line of text."""
    try:
        text = raw.decode("ascii").strip()
    except UnicodeDecodeError as exc:
        raise UsageError(f"the secret in {path} is not ASCII text") from exc
    if not MIN_SECRET_SIZE <= len(text) <= MAX_SECRET_SIZE or not text.isprintable() or " " in text:
        raise UsageError(
            f"{path} does not hold a secret: one line of {MIN_SECRET_SIZE} characters or more",
            hint=f"make one: openssl rand -hex 32 > {path}",
        )
    return text
