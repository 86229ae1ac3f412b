"""Numbers and the SDE: paths, their coefficients in float64, rows, grids and noise. Importing this registers every grid."""

from scoreflow._core import chain_grid, tool_grid

__all__ = ["NUMERICS", "chain_grid", "tool_grid"]

NUMERICS = 3
"""Raised when the same call gives other numbers. Stores of studies are of one such version; tests/test_numerics.py holds it."""
