"""Numbers and the SDE: paths, their coefficients in float64, rows, grids and noise."""

NUMERICS = 1
"""Raised when the same call gives other numbers. Stores of studies are of one such version; tests/test_numerics.py holds it."""
