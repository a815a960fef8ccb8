"""The page at `/`: images, versions, bytes an update, hit rate by role. HTML without scripts."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jinja2

from layerkit.edges.http.metrics import ROLES, RoleTotals
from layerkit.edges.http.source import RepositoryFacts

__all__ = ["render_page"]


def render_page(
    repositories: Sequence[RepositoryFacts],
    totals: Sequence[RoleTotals],
    request_count: int,
    up_seconds: float,
) -> bytes:
    """HTML of what the caller may see; without `totals` nothing is said of the whole server."""
    return (
        _template()
        .render(
            repositories=repositories,
            totals=totals,
            roles=ROLES,
            request_count=request_count,
            up_time=_duration(up_seconds),
            version_count=sum(len(repository.versions) for repository in repositories),
            update_count=sum(len(repository.updates) for repository in repositories),
        )
        .encode()
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("layerkit.edges.http", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=_size, percent=_percent, day=_day)
    return environment.get_template("page.html")


def _size(size: float) -> str:
    """Bytes for people: three digits, powers of 1000, as networks and registries count."""
    shown, units = float(size), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while shown >= 999.5 and unit != "TB":
        shown, unit = shown / 1000, next(units)
    return f"{shown:.3g} {unit}" if unit != "B" else f"{int(shown)} B"


def _percent(part: float | None) -> str:
    """Never 100 % for what is not all."""
    if part is None:
        return "\N{EN DASH}"
    shown = f"{part * 100:.1f}"
    return f"{'>99.9' if shown == '100.0' and part < 1 else shown} %"


def _day(text: str) -> str:
    """The day and minute of an RFC 3339 time; builds that can be repeated say the epoch."""
    if not text or text.startswith("1970-01-01T00:00:00"):
        return "\N{EN DASH}"
    return text[:16].replace("T", " ")


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{int(seconds)} s"
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h" if hours < 72 else f"{hours // 24} days"
