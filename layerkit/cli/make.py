"""The verbs that make something: init, build."""

from __future__ import annotations

import click

__all__ = ["add_make_verbs"]


def add_make_verbs(group: click.Group) -> None:
    """Register the verbs of this module."""
