"""What was measured of x_0: `y = A x_0 + e`, e ~ N(0, Σ_y)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from scoreflow._core.check import flag
from scoreflow._core.row import double, flat

Map = Callable[[Tensor], Tensor]
MOST = 4096
"""Entries of a state up to which the singular vectors of A are computed."""


class Singular(NamedTuple):
    """`A = U diag(s) Vᵀ`, of batches that are flattened: measurements (B, m), states (B, *event).

    Attributes:
        s: those above 0, (r,). U_adjoint: Uᵀ, (B, m) to (B, r). V_adjoint: Vᵀ, (B, *event) to (B, r). V: (B, r) to (B, *event).
    """

    s: Tensor
    U_adjoint: Map
    V_adjoint: Map
    V: Map


def log_normal(r: Tensor, root: Tensor) -> Tensor:
    """The log-density of N(0, L Lᵀ) at r (n, m), (n,); L (m, m), or one a row."""
    white = torch.linalg.solve_triangular(root, r[..., None], upper=False)[..., 0]
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -(white.square().sum(-1) + log_det + r.shape[-1] * math.log(2 * math.pi)) / 2


class Observation:
    """`y = A x_0 + e`, e ~ N(0, Σ_y).

    Args:
        A: what measures. A matrix (m, d) acts on the d flattened entries of a state. A boolean mask, of a state's shape or one
            that broadcasts to it, measures the entries where it is true. A callable takes states (B, *event) to measurements
            (B, ...); it must be linear for all methods but those that say otherwise. An object with `A` and `A_adjoint`, such
            as a physics of deepinv, is taken as it is, with its `A_dagger` and `prox_l2` if it has them.
        y: what was measured, one for all samples or one a sample: of the shape that A gives, with a first dimension B or
            without. For a mask also of the shape of states, of which the measured entries are taken.
        noise: σ_y ≥ 0; or standard deviations of the shape of a measurement; or the covariance (m, m).
        adjoint: Aᵀ of a callable, from measurements to states. None: by automatic differentiation.
        linear: whether a callable is.
        pinv: A⁺ of a callable, from measurements to states. None: by conjugate gradients.
        prox: `prox(x, y, gamma)`, the z of least `γ/2 ‖A z − y‖² + ½ ‖z − x‖²`, for `diffpir` with one σ_y. None: by conjugate
            gradients.
        svd: the `Singular` values and vectors of A, for `ddrm`. None: computed, for states of up to 4096 entries.

    Raises:
        TypeError: no tensor, no map. ValueError: what is negative, empty or not finite, a covariance that is not symmetric; a
            mask that measures nothing. Shapes are checked where a state's shape is known, at the first use.
    """

    def __init__(
        self, A: Any, y: Tensor, noise: float | Tensor = 0.0, *, adjoint: Map | None = None, linear: bool = True,
        pinv: Map | None = None, prox: Callable[..., Tensor] | None = None, svd: Singular | None = None,
    ) -> None:  # fmt: skip
        _check_y(y)
        self.linear = flag("linear", linear)
        self.A, self.y, self._adjoint = A, y, adjoint
        self.pinv, self.prox, self.svd = pinv, prox, svd
        for name, given in (("adjoint", adjoint), ("pinv", pinv), ("prox", prox)):
            if given is not None and not callable(given):
                raise TypeError(f"{name} must be a callable, got {type(given).__name__}")
        if svd is not None and not isinstance(svd, Singular):
            raise TypeError(f"svd must be a Singular(s, U_adjoint, V_adjoint, V), got {type(svd).__name__}")
        self.mask = A if isinstance(A, Tensor) and A.dtype == torch.bool else None
        if self.mask is not None:
            if not bool(self.mask.any()):
                raise ValueError("A is a mask that measures nothing: at least one entry must be true")
        elif isinstance(A, Tensor):
            if A.ndim != 2 or not A.is_floating_point() or not bool(A.isfinite().all()):
                raise ValueError(
                    f"A must be a finite matrix (m, d), a boolean mask or a callable, got {A.dtype} {tuple(A.shape)}"
                )
        elif hasattr(A, "A") and hasattr(A, "A_adjoint"):
            self.A, self._adjoint = A.A, A.A_adjoint if adjoint is None else adjoint
            self.pinv = getattr(A, "A_dagger", None) if pinv is None else pinv
            self.prox = getattr(A, "prox_l2", None) if prox is None else prox
        elif not callable(A):
            raise TypeError(f"A must be a matrix, a boolean mask or a callable, got {type(A).__name__}")
        if not linear and isinstance(A, Tensor):
            raise ValueError("linear=False, and a matrix or a mask is linear")
        self.noise = torch.as_tensor(noise, dtype=None if isinstance(noise, Tensor) else torch.float64)
        if self.noise.is_complex() or self.noise.dtype == torch.bool or not bool(self.noise.isfinite().all()):
            raise ValueError(f"noise must be σ_y, standard deviations or a covariance, all finite, got {noise!r}")
        if self.noise.ndim != 2 and bool((self.noise < 0).any()):
            raise ValueError(f"noise must be ≥ 0, got {float(self.noise.min())}")
        self._matrices: dict[tuple[int, ...], Tensor] = {}
        self._decode: Map | None = None

    def __repr__(self) -> str:
        kind = "mask" if self.mask is not None else tuple(self.A.shape) if isinstance(self.A, Tensor) else _name(self.A)
        noise = f"{float(self.noise):g}" if not self.noise.ndim else tuple(self.noise.shape)
        return f"Observation({kind}, y {tuple(self.y.shape)}, noise={noise})"

    def measure(self, x: Tensor) -> Tensor:
        """`A x` of states (B, *event), flattened to (B, m)."""
        x = x if self._decode is None else self._decode(x)
        if self.mask is not None:
            return x[:, self._mask(x)]
        if isinstance(self.A, Tensor):
            A, y = self.A.to(x), flat(x)
            if A.shape[1] != y.shape[1]:
                raise ValueError(f"A is {tuple(A.shape)}, and states of shape {tuple(x.shape[1:])} have {y.shape[1]} entries")
            return y @ A.mT
        return flat(self._measured(x))

    def adjoint(self, u: Tensor, x: Tensor) -> Tensor:
        """`Aᵀ u` of (B, m), in the shape of the states x (B, *event); of an A that is not linear, of its Jacobian at x."""
        if self._decode is not None:
            return self._pulled(u, x)
        if self.mask is not None:
            out = torch.zeros(len(u), *x.shape[1:], dtype=u.dtype, device=u.device)
            out[:, self._mask(x)] = u
            return out
        if isinstance(self.A, Tensor):
            return (u @ self.A.to(u)).reshape(len(u), *x.shape[1:])
        if self._adjoint is not None:
            return self._adjoint(self._shaped(u, x))
        return self._pulled(u, x)

    def _pulled(self, u: Tensor, x: Tensor) -> Tensor:
        """The Jacobian's transpose at x on u."""
        with torch.inference_mode(False), torch.enable_grad():
            whole = u.requires_grad or x.requires_grad  # the run itself is differentiated
            at = x.to(u.dtype) if whole and x.requires_grad else x.detach().to(u.dtype).clone().requires_grad_()
            (back,) = torch.autograd.grad(self.measure(at), at, u if whole else u.clone(), create_graph=whole)
        return back

    def inverse(self, u: Tensor, x: Tensor) -> Tensor | None:
        """`A⁺ u` of (B, m) in the shape of the states x, if it is known; else None."""
        if self.mask is not None and self._decode is None:
            return self.adjoint(u, x)
        return None if self.pinv is None else self.pinv(self._shaped(u, x))

    def proximal(self, x: Tensor, gamma: Any) -> Tensor:
        """The z of least `γ/2 ‖A z − y‖² + ½ ‖z − x‖²`, by `prox`."""
        assert self.prox is not None
        return self.prox(x, self._shaped(self.values(x).expand(len(x), -1), x), gamma)

    def singular(self, event: Sequence[int]) -> Singular:
        """The singular values and vectors of A, for states of this shape.

        Raises:
            ValueError: A is not linear; or states have more than 4096 entries, and `svd` was not given.
        """
        if self.svd is not None:
            return self.svd
        if self.mask is not None:
            like = torch.empty(1, *event)
            return Singular(torch.ones(int(self._mask(like).sum())), lambda u: u, self.measure, lambda c: self.adjoint(c, like))
        if (d := math.prod(event)) > MOST:
            raise ValueError(f"states have {d} entries, and the singular vectors of A are computed up to {MOST}: give svd")
        U, s, Vt = torch.linalg.svd(self.matrix(event), full_matrices=False)
        rank = int((s > s[0] * 1e-12).sum())
        U, Vt = U[:, :rank], Vt[:rank]
        return Singular(
            s[:rank], lambda u: u @ U.to(u), lambda x: flat(x) @ Vt.mT.to(x), lambda c: (c @ Vt.to(c)).reshape(-1, *event)
        )

    def through(self, decode: Map) -> Observation:
        """The same of latents: A after `decode`, which takes latents (B, ...) to states. It is not linear.

        For `sf.Posterior(latent.model, observation.through(latent.autoencoder.decode), "dps")`.
        """
        if not callable(decode):
            raise TypeError(f"decode must be a callable from latents to states, got {type(decode).__name__}")
        other = copy.copy(self)
        other._decode = decode if (own := self._decode) is None else lambda z: own(decode(z))
        other.linear = False
        return other

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Measurements of states x (B, *event): `A x + e`, e ~ N(0, Σ_y), one a state: (B, *measurement), in the dtype of x.

        Args:
            generator: on the host; e is drawn in float64.

        Raises:
            ValueError: A or the noise does not fit these states; a covariance that is negative in some direction.
        """
        seen = self.measure(x)
        z = torch.randn(seen.shape, generator=generator, dtype=torch.float64)
        if self._is_cov(seen.shape[1]):
            var, eigenvectors = torch.linalg.eigh(self.noise.to("cpu", torch.float64))
            if bool((var < -1e-6 * var.abs().amax()).any()):
                raise ValueError(f"noise must be a covariance ≥ 0 in all directions, got the eigenvalue {float(var.min()):g}")
            e = (z * var.clamp(min=0).sqrt()) @ eigenvectors.mT
        else:
            e = z * self.noise.to("cpu", torch.float64).reshape(-1)
        return (seen + e.to(seen)).reshape(len(x), *self._shapes(self._decoded(x))[-1])

    def given(self, y: Tensor) -> Self:
        """The same A and noise with another y, one for all samples or one a sample.

        Raises:
            TypeError, ValueError: as of the class.
        """
        _check_y(y)
        other = copy.copy(self)
        other.y = y
        return other

    def log_likelihood(self, x: Tensor) -> Tensor:
        """`log p(y | x_0 = x) = log N(y; A x, Σ_y)` of states (B, *event): (B,), in float64.

        Raises:
            ValueError: Σ_y is singular, so that y has no density.
        """
        off = double(self.residual(x))
        factor, wrong = torch.linalg.cholesky_ex(self.covariance(off.shape[1]))
        if bool(wrong.any()):
            raise ValueError(f"{self!r} has no noise in some direction, and so no density given x_0: give noise > 0")
        return log_normal(off, factor.to(off))

    def values(self, x: Tensor) -> Tensor:
        """y for these states: (1, m), or (B, m) if there is one a sample.

        Raises:
            ValueError: neither of the shape of a measurement nor of B of them.
        """
        y, like = self.y.to(x), self._decoded(x)
        y = y if self._each(x, len(x)) else y[None]
        return y[:, self._mask(like)] if self.mask is not None and y.shape[1:] == like.shape[1:] else flat(y)

    def some(self, samples: Tensor, batch: int, x: Tensor) -> Self:
        """The observation of these samples, by number, of a batch, with states x; itself if y is one for all."""
        if not self._each(x, batch):
            return self
        other = copy.copy(self)
        other.y = self.y[samples.to(self.y.device)]
        return other

    def _each(self, x: Tensor, batch: int) -> bool:
        """Whether y has one a sample."""
        shapes = self._shapes(self._decoded(x))
        for shape in shapes:
            if tuple(self.y.shape) in (shape, (batch, *shape)):
                return tuple(self.y.shape) != shape
        says = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise ValueError(
            f"y must be {says}, or {batch} of these, for {batch} states {tuple(x.shape[1:])}; got {tuple(self.y.shape)}"
        )

    def is_one(self, x: Tensor) -> bool:
        """Whether y is one for all states (B, *event) of whatever number, and not one a sample."""
        return tuple(self.y.shape) in self._shapes(self._decoded(x))

    def residual(self, x_0: Tensor) -> Tensor:
        """`y − A x_0`, (B, m)."""
        return self.values(x_0) - self.measure(x_0)

    def covary(self, u: Tensor) -> Tensor:
        """`Σ_y u` of (B, m)."""
        noise = self.noise.to(u)
        return u @ noise if self._is_cov(u.shape[1]) else u * noise.reshape(-1).square()

    @property
    def is_exact(self) -> bool:
        """Whether there is no noise."""
        return not bool(self.noise.any())

    def covariance(self, m: int) -> Tensor:
        """Σ_y as a matrix (m, m), in float64."""
        return self.covary(torch.eye(m, dtype=torch.float64))

    def matrix(self, event: Sequence[int]) -> Tensor:
        """A as a matrix (m, d) in float64, for states of this shape. It is kept.

        Raises:
            ValueError: A is not linear.
        """
        if not self.linear:
            raise ValueError(f"{self} is not linear, and has no matrix")
        key = tuple(event)
        if key not in self._matrices:
            d = math.prod(key)
            basis = torch.eye(d, dtype=torch.float64).reshape(d, *key)
            self._matrices[key] = double(self.measure(basis)).mT.contiguous()
        return self._matrices[key]

    def _decoded(self, x: Tensor) -> Tensor:
        """A state of the kind that A acts on, for its shape."""
        if self._decode is None:
            return x
        with torch.no_grad():
            return self._decode(x[:1])

    def _shaped(self, u: Tensor, x: Tensor) -> Tensor:
        """(B, m) as measurements have it."""
        return u.reshape(len(u), *self._measured(x[:1]).shape[1:])

    def _shapes(self, x: Tensor) -> list[tuple[int, ...]]:
        """Those that a measurement may have."""
        if self.mask is not None:
            mask = self._mask(x)
            return [tuple(x.shape[1:]), (int(mask.sum()),)]
        return [(len(self.A),)] if isinstance(self.A, Tensor) else [tuple(self._measured(x[:1]).shape[1:])]

    def _mask(self, x: Tensor) -> Tensor:
        assert self.mask is not None
        event = tuple(x.shape[1:])
        try:
            return self.mask.to(x.device).expand(event)
        except RuntimeError:
            raise ValueError(f"A is a mask of shape {tuple(self.mask.shape)}, and states have shape {event}") from None

    def _measured(self, x: Tensor) -> Tensor:
        out = self.A(x)
        if not isinstance(out, Tensor) or out.ndim < 1 or len(out) != len(x):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"A must give a tensor with a row a state, got {got} for states {tuple(x.shape)}")
        return out

    def _is_cov(self, m: int) -> bool:
        """Whether the noise is a covariance.

        Raises:
            ValueError: it fits no measurement of m numbers, or is negative.
        """
        variance = m == 1 and self.noise.ndim == 2  # (1, 1) is the covariance of one number
        if self.noise.numel() in (1, m) and not variance:
            if not bool((self.noise >= 0).all()):
                raise ValueError(f"noise must be ≥ 0, got {float(self.noise.min())}")
            return False
        if tuple(self.noise.shape) != (m, m) or not torch.allclose(self.noise, self.noise.mT):
            raise ValueError(f"noise must be a number, {m} numbers or symmetric {(m, m)}, got shape {tuple(self.noise.shape)}")
        return True


def _check_y(y: Any) -> None:
    if not isinstance(y, Tensor) or not y.is_floating_point() or not y.numel():
        got = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y must be a floating-point tensor that is not empty, got {got}")
    if bad := int((~y.isfinite()).sum()):
        raise ValueError(f"y must be finite, and {bad} of its {y.numel()} numbers are not")


def _name(value: Any) -> str:
    return str(getattr(value, "__name__", value))
