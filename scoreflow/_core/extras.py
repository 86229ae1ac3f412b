"""The packages that the library uses where they are installed, and the extra that brings each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    "data": ("sklearn", "PIL", "mlxtend", "fugue_icons"),
    "study": ("pandas", "pyarrow", "ot", "matplotlib", "plotly", "jinja2"),
    "train": ("lightning_fabric", "lightning"),
    "inception": ("torch_fidelity",),
    "demo": ("rich",),
}
"""The packages that an extra brings."""


@contextmanager
def named() -> Iterator[None]:
    """Inside, the error of a package that is not installed says which extra brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        hint = next((f"pip install 'scoreflow[{extra}]'" for extra, names in EXTRAS.items() if missing in names), "")
        if not hint or hint in str(error):
            raise
        raise ModuleNotFoundError(f"{error}; {hint}", name=error.name, path=error.path) from error
