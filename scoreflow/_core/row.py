"""The affine Gaussian step: what every linear sampler comes down to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

Scalar = float | Tensor


class Row(NamedTuple):
    """`x_s = x·x_t + Σ_j m_j·M_j + z·ε`: each coefficient bears the name of what it multiplies.

    Attributes:
        x: the weight of the state x_t.
        m: the weights of the outputs, M_j, newest first.
        z: the standard deviation of the noise; or a tuple, a weight for each of the step's independent draws.

    The coefficients are floats, or tensors of shape (B,) with one value a sample.
    """

    x: Scalar
    m: tuple[Scalar, ...] = ()
    z: Any = 0.0

    @property
    def draws(self) -> tuple[tuple[int, Scalar], ...]:
        """(k, weight) of each of the step's draws that the row takes."""
        if not isinstance(self.z, tuple):
            return ((0, self.z),) if isinstance(self.z, Tensor) or self.z != 0 else ()
        return tuple((k, z) for k, z in enumerate(self.z) if isinstance(z, Tensor) or z != 0)

    def __call__(self, x_t: Tensor, outputs: Sequence[Tensor] = (), draw: Callable[[int], Tensor] | None = None) -> Tensor:
        """Apply the row to a state (B, ...), the outputs it weighs and standard normal draws, all of that shape.

        `draw(k)` is called only for a draw that is taken.

        Raises:
            ValueError: more or fewer outputs than weights, or noise without a `draw`.
        """
        if len(outputs) != len(self.m):
            raise ValueError(f"this row weighs {len(self.m)} outputs, got {len(outputs)}")
        x_s = x_t * per_sample(self.x, x_t)
        for weight, output in zip(self.m, outputs):  # noqa: B905 (as many, as was seen)
            _add(x_s, weight, output)
        for k, z in self.draws:
            if draw is None:
                raise ValueError("this row adds noise: give draw")
            _add(x_s, z, draw(k))
        return x_s

    def through(self, a: Scalar, b: Scalar) -> Row:
        """The same step for another prediction N, where `M_0 = a·x_t + b·N_0` (one output only)."""
        (m,) = self.m
        return Row(self.x + m * a, (m * b,), self.z)


def _add(x: Tensor, weight: Scalar, other: Tensor) -> None:
    """`x += weight · other`, in one pass."""
    if isinstance(weight, Tensor):
        x.add_(other * per_sample(weight, other))
    elif weight != 0:
        x.add_(other, alpha=weight)


@overload
def per_sample(coefficient: Tensor, x: Tensor) -> Tensor: ...
@overload
def per_sample(coefficient: float, x: Tensor) -> float: ...
@overload
def per_sample(coefficient: Scalar, x: Tensor) -> Any: ...
def per_sample(coefficient: Scalar, x: Tensor) -> Scalar:
    """One value a sample, in a shape that multiplies a state; floats as they are."""
    if isinstance(coefficient, Tensor) and coefficient.ndim:
        return coefficient.to(x).reshape(-1, *[1] * (x.ndim - 1))
    return coefficient


def wide(x: Tensor) -> Tensor:
    """States of 32 bits at least: rounding to 16 adds up over steps, and is above the tolerances of error control."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


NO_FLOAT64 = {"mps"}
"""Types of devices without float64."""


def double_on(device: torch.device) -> torch.dtype:
    """float64; float32 on a device that has none."""
    lacks = not torch.xpu.get_device_properties(device).has_fp64 if device.type == "xpu" else device.type in NO_FLOAT64
    return torch.float32 if lacks else torch.float64


def double(x: Tensor) -> Tensor:
    """In float64, or what its device has of it."""
    return x.to(double_on(x.device))


def flat(x: Tensor) -> Tensor:
    """(B, ...) as (B, d); a batch of numbers as (B, 1)."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def standard_error(each: Tensor) -> Tensor:
    """Of the mean over k draws (k, B), sample by sample (B,); NaN where there is one."""
    k = len(each)
    return each.std(0) / math.sqrt(k) if k > 1 and each.numel() else each.new_full(each.shape[1:], math.nan)


LEGENDRE = np.polynomial.legendre.leggauss(32)
NODES, MASSES = (LEGENDRE[0] + 1) / 2, LEGENDRE[1] / 2
"""On [0, 1]."""


def weights(
    measure: Callable[[np.ndarray], np.ndarray],
    knots: Sequence[float],
    lo: float,
    hi: float,
    variable: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[float, ...]:
    """`w_j = ∫_lo^hi measure(u) ℓ_j(variable(u)) du`, with ℓ_j the Lagrange basis through the knots.

    This is the one quadrature of all exponential integrators and multistep methods: the function that they integrate is
    replaced by its interpolant through the outputs. Gauss–Legendre with 32 nodes, in float64; short intervals
    lose no digits.
    """
    u = lo + (hi - lo) * NODES
    return _integrals(u if variable is None else variable(u), (hi - lo) * MASSES * measure(u), knots)


def exponential_weights(rate: float, knots: Sequence[float], lo: float, hi: float) -> tuple[float, ...]:
    """`w_j = ∫_lo^hi |rate| e^{rate (u − hi)} ℓ_j(u) du`, with ℓ_j through the knots; of one knot in closed form."""
    if len(knots) == 1:
        return (math.copysign(1.0, -rate) * math.expm1(rate * (lo - hi)),)
    return _integrals(*_exponential(rate, lo, hi), knots)


@functools.lru_cache(maxsize=4)
def _exponential(rate: float, lo: float, hi: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and masses: a predictor and its corrector have the same."""
    u = lo + (hi - lo) * NODES
    return u, (hi - lo) * MASSES * (abs(rate) * np.exp(rate * (u - hi)))


def _integrals(at: np.ndarray, mass: np.ndarray, knots: Sequence[float]) -> tuple[float, ...]:
    """Sums of the mass times ℓ_j, one after the other, on every machine."""
    if len(knots) == 1:
        return (float(np.add.accumulate(mass)[-1]),)
    over = np.add.accumulate(_products(at, knots) * mass, 1)[:, -1].tolist()
    return tuple(one / under for one, under in zip(over, _scales(knots), strict=True))


def lagrange(knots: Sequence[float], u: float) -> list[float]:
    """ℓ_j(u) of two knots or more."""
    over = _products(np.array([u]), knots)[:, 0].tolist()
    return [one / under for one, under in zip(over, _scales(knots), strict=True)]


def _products(u: np.ndarray, knots: Sequence[float]) -> np.ndarray:
    """`Π_{i≠j} (u − knot_i)`, a row for each of the k knots."""
    return np.multiply.reduce((u - np.array(knots)[:, None])[_others(len(knots))], 1)


def _scales(knots: Sequence[float]) -> list[float]:
    """`Π_{i≠j} (knot_j − knot_i)`."""
    return [math.prod([here - knot for i, knot in enumerate(knots) if i != j]) for j, here in enumerate(knots)]


@functools.cache
def _others(k: int) -> np.ndarray:
    """The numbers up to k without the j-th, (k, k − 1)."""
    return np.array([[i for i in range(k) if i != j] for j in range(k)])
