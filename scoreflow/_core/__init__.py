"""Numbers and the SDE: paths, their coefficients in float64, rows, grids and noise."""
