"""Products of mixtures in one dimension, whose flow map is known in any."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoreflow._core.gaussian import GaussianPath
from scoreflow._score.exact_map import QuantileMap
from scoreflow._score.flow_map import FlowMap
from scoreflow._score.oracle import GaussianMixture, numbers

MOST = 4096
"""Components of a product."""


class ProductMixture(GaussianMixture):
    """`x_0 = R z`, the z_i independent, each of a mixture in one dimension: a `GaussianMixture` whose flow map is exact.

    Args:
        parts: d mixtures of states of one number each, with variances above 0.
        rotation: R, orthogonal, (d, d); None for none.

    Raises:
        ValueError: no parts, one of more dimensions, a rotation that is not orthogonal or of another size, or more than 4096
            components in all.
    """

    def __init__(self, parts: Sequence[GaussianMixture], rotation: Tensor | None = None) -> None:
        if not parts or any(part.means.shape[1] != 1 for part in parts):
            raise ValueError("parts must be mixtures of states of one number each, one or more")
        if (size := math.prod(len(part.means) for part in parts)) > MOST:
            raise ValueError(f"parts must have at most {MOST} components in all combinations, got {size}")
        self.lines = [part._line() for part in parts]
        d = len(parts)
        R = torch.eye(d, dtype=torch.float64) if rotation is None else numbers("rotation", rotation)
        if R.shape != (d, d) or float((R @ R.mT - torch.eye(d, dtype=torch.float64)).abs().max()) > 1e-10:
            raise ValueError(f"rotation must be orthogonal to 1e-10, ({d}, {d}), got shape {tuple(R.shape)}")
        self.rotation = None if rotation is None else R
        log_w, means, var = (_every([line[k] for line in self.lines]) for k in range(3))
        weights = log_w.sum(1).exp()
        if rotation is None:
            super().__init__(weights, means, var)
        else:
            super().__init__(weights, means @ R.mT, (R * var[:, None]) @ R.mT)

    def flow_map(self, path: GaussianPath) -> FlowMap:
        """The exact flow map on a path: each z_i by its own quantiles."""
        return self._mapped(QuantileMap(self.lines, self.rotation, path), path)


def _every(values: list[Tensor]) -> Tensor:
    """All combinations of one of each, (K, d)."""
    return torch.cartesian_prod(*values).reshape(-1, len(values))
