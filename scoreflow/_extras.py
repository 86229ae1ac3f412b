"""The packages that the library uses where they are installed, and the extra that brings each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

EXTRAS = {
    "data": ("sklearn", "PIL", "mlxtend"),
    "study": ("pandas", "pyarrow", "ot", "matplotlib", "plotly", "jinja2"),
    "train": ("lightning_fabric",),
    "inception": ("torch_fidelity",),
    "cluster": ("dask", "submitit"),
    "demo": ("rich",),
}
"""The modules that an extra brings."""


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


def needs(extra: str, *names: str) -> None:
    """Raise ModuleNotFoundError, before anything runs, unless these are installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ModuleNotFoundError(f"this needs {', '.join(missing)}; pip install 'scoreflow[{extra}]'")
