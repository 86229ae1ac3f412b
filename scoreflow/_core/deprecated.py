"""Names that were public and are others now: they work, and warn."""

from __future__ import annotations

import warnings
from typing import Any

GONE = "0.3"
"""The release that has them no more: two after the one that renamed them."""


def warn(old: str, new: str) -> None:
    """Say at the caller's line that a name is another now."""
    warnings.warn(f"{old} is {new} now; the old name goes with {GONE}", DeprecationWarning, stacklevel=3)


def renamed(old: str, new: str) -> Any:
    """An attribute or method by its earlier name."""

    def get(self: Any) -> Any:
        warn(f"{type(self).__name__}.{old}", new)
        return getattr(self, new)

    return property(get, doc=f"The earlier name of `{new}`.")
