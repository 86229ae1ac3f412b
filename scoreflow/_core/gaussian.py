"""Gaussian paths: `x_t = α_t x_0 + σ_t ε`, and every coefficient that follows from it.

A path is the two curves log α and log σ. All that a sampler needs is derived from them here, once, in float64, by
`expm1` and `log1p`, and stays finite where σ → 0 and where α_t = 0. Times run from 0 (data) to 1 (prior).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from scoreflow._core import check
from scoreflow._core.check import hidden
from scoreflow._core.deprecated import renamed
from scoreflow._core.row import Row, double

S = TypeVar("S", float, Tensor)
Self = TypeVar("Self")
V = TypeVar("V")
Prediction = Literal["eps", "x0", "v", "score", "flow"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


def curve(formula: Callable[[Self, Tensor], Tensor]) -> Callable[[Self, S], S]:
    """Let a formula for float64 tensors take a number, or a tensor of any floating dtype, and answer in kind."""
    name = formula.__name__

    def method(self: Self, t: S) -> S:
        if isinstance(t, Tensor):
            return formula(self, double(t)).to(t.dtype)
        if name != "time":
            check.time("t", t)
        number = float(t)
        return _once(self, (name, number), lambda: formula(self, torch.tensor(number, dtype=torch.float64)).item())

    method.__name__, method.__qualname__, method.__doc__ = name, formula.__qualname__, formula.__doc__
    return method


class Parameters:
    """What has parameters that numbers are remembered for: it counts their changes, and leaves what it remembers behind when it
    is copied or pickled."""

    _changes = 0

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.__dict__["_changes"] = self._changes + 1

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_known", "_parts")}

    @property
    def stamp(self) -> Hashable:
        """What is another after every change: of an attribute, or, down to four levels, of its entries and parts, in place."""
        parts: tuple[int, list[Tensor], list[Any]] | None = self.__dict__.get("_parts")
        if parts is None or parts[0] != self._changes:
            held = [value for name, value in vars(self).items() if name not in ("_changes", "_known", "_parts")]
            held += [one for value in held if type(value) is tuple for one in value]
            tensors = [one for one in held if isinstance(one, Tensor) and not one.is_inference()]
            rest = [one for one in held if not _still(one) and not isinstance(one, Tensor)]
            parts = self.__dict__["_parts"] = (self._changes, tensors, rest)
        return parts[0], *[one._version for one in parts[1]], *[_stamp(one, 4) for one in parts[2]]


PLAIN = frozenset((float, int, bool, str, type(None)))


def _still(value: Any) -> bool:
    """Whether it can change by a new value alone: a number, a text, or a tuple of such and of tensors."""
    kind = type(value)
    return kind in PLAIN or (kind is tuple and all(type(one) in PLAIN or isinstance(one, Tensor) for one in value))


def _stamp(value: Any, levels: int) -> Hashable:
    kind: type = type(value)
    if kind in PLAIN:
        return cast(Hashable, value)
    if isinstance(value, Tensor):
        return (id(value), -1 if value.is_inference() else value._version)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, Parameters):
        return value.stamp
    if isinstance(value, nn.Module):
        numbers = (one for layer in value.modules() for one in vars(layer).values() if type(one) in PLAIN)
        return (*((id(p), p._version) for p in (*value.parameters(), *value.buffers())), *numbers)
    if isinstance(value, tuple | list | dict) and levels:
        return tuple(_stamp(one, levels - 1) for one in (value.values() if isinstance(value, dict) else value))
    held = getattr(value, "__dict__", None)
    return (id(value), _stamp(held, levels - 1)) if isinstance(held, dict) and levels else id(value)


def _once(path: Any, key: tuple[Any, ...], make: Callable[[], V]) -> V:
    """What `make` gives, kept with the path while its parameters stay: runs need the same numbers again and again."""
    stamp = path.stamp
    held: tuple[Hashable, dict[tuple[Any, ...], V]] | None = path.__dict__.get("_known")
    if held is None or held[0] != stamp or len(held[1]) > 100_000:
        held = path.__dict__["_known"] = (stamp, {})
    if (value := held[1].get(key)) is None:
        value = held[1][key] = make()
    return value


class GaussianPath(Parameters):
    """`x_t = α_t x_0 + σ_t ε`. Subclasses give `log_alpha` and `log_sigma`; all else is derived.

    Every method takes times in [0, 1], a float or a tensor of shape (B,), and answers with a float or a tensor of that
    shape. The arithmetic is float64. A number outside is refused; the entries of a tensor are not looked at.

    | method | meaning |
    |---|---|
    | `alpha`, `sigma`, `log_alpha`, `log_sigma` | the curves |
    | `lam` | `λ = log(α/σ)`, half the log-SNR; falls with t; ∞ at σ = 0, −∞ at α = 0 |
    | `kappa` | `κ = σ/α = e^{−λ}`, EDM's sigma |
    | `f`, `g2` | the forward SDE `dx = f x dt + g dw`: `f = d log α/dt`, `g² = dσ²/dt − 2 f σ²` |
    | `alpha_slope`, `sigma_slope`, `lam_slope` | derivatives by t |
    | `time` | the t with λ(t) = lam |

    Reference:
        Score-Based Generative Modeling through SDEs (Song et al., 2021); letters as in DPM-Solver (Lu et al., 2022).
    """

    T: int | None = None
    """The number of steps of the DDPM chain the path was made from; node i stands at t = i/T."""

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    # -- the curves --------------------------------------------------------------------------------------------------
    @curve
    def log_alpha(self, t: Tensor) -> Tensor:
        """log α; every path defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define log_alpha")

    @curve
    def log_sigma(self, t: Tensor) -> Tensor:
        """log σ; every path defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define log_sigma")

    @curve
    def alpha(self, t: Tensor) -> Tensor:
        """α."""
        return self.log_alpha(t).exp()

    @curve
    def sigma(self, t: Tensor) -> Tensor:
        """σ."""
        return self.log_sigma(t).exp()

    @curve
    def lam(self, t: Tensor) -> Tensor:
        """λ = log α − log σ."""
        return self.log_alpha(t) - self.log_sigma(t)

    @curve
    def kappa(self, t: Tensor) -> Tensor:
        """κ = σ/α."""
        return (-self.lam(t)).exp()

    # -- the forward SDE ---------------------------------------------------------------------------------------------
    @curve
    def f(self, t: Tensor) -> Tensor:
        """f = d log α/dt."""
        return _slope(self.log_alpha, t)

    @curve
    def g2(self, t: Tensor) -> Tensor:
        """g² = dσ²/dt − 2 f σ² = −2 σ² dλ/dt."""
        return -2 * self.sigma(t) ** 2 * _slope(self.lam, t)

    @curve
    def alpha_slope(self, t: Tensor) -> Tensor:
        """dα/dt = f α."""
        return self.f(t) * self.alpha(t)

    @curve
    def sigma_slope(self, t: Tensor) -> Tensor:
        """dσ/dt = f σ + g²/(2σ); infinite where σ = 0 and g > 0."""
        return self.f(t) * self.sigma(t) + self.g2(t) / (2 * self.sigma(t))

    @curve
    def lam_slope(self, t: Tensor) -> Tensor:
        """dλ/dt = −g²/(2σ²)."""
        return -self.g2(t) / (2 * self.sigma(t) ** 2)

    @curve
    def time(self, lam: Tensor) -> Tensor:
        """The t with λ(t) = lam, held to [0, 1]; by bisection unless the path has a closed form."""
        return _bisect(self.lam, lam, torch.zeros_like(lam), torch.ones_like(lam))

    # -- transitions -------------------------------------------------------------------------------------------------
    def prior_std(self, t: S) -> S:
        """`√(α² + σ²)`, what the states at t have for a standard deviation when the data have mean 0 and variance 1.

        It is 1 on a VP path. The prior at t is N(0, prior_std² I).
        """
        return _lift(torch.hypot, self.alpha(t), self.sigma(t))

    def forward(self, t: S, u: S) -> Row:
        """`q(x_u | x_t)` for u ≥ t: `x_u = (α_u/α_t) x_t + √(σ_u² − (α_u σ_t/α_t)²) ε`.

        Raises:
            ValueError: u < t.
        """
        x = _lift(lambda a, b: (a - b).exp(), self.log_alpha(u), self.log_alpha(t))
        return Row(x, (), _lift(_spread, self.sigma(u), self.lam(u), self.lam(t)))

    noised = renamed("noised", "q_sample")

    def q_sample(self, x_0: Tensor, t: S, eps: Tensor) -> Tensor:
        """`x_t = α_t x_0 + σ_t ε` of states (B, ...), t a float or (B,)."""
        return Row(self.alpha(t), (), self.sigma(t))(x_0, draw=lambda _: eps)

    def posterior_std(self, t: S, s: S, eta: float = 1.0) -> S:
        """`σ_s √(1 − e^{−2η²h})`, h = λ_s − λ_t: the noise of the reverse SDE of level η, solved exactly from t to s.

        η = 1 is the standard deviation of `q(x_s | x_t, x_0)`, on a chain √β̃ (Ho et al., 2020, Eq. 7).

        Raises:
            ValueError: s > t.
        """
        if eta == 0:
            return self.sigma(s) * 0.0
        return _lift(lambda std, lo, hi: _spread(std, lo, hi, eta**2), self.sigma(s), self.lam(t), self.lam(s))

    def bridge(self, t: S, s: S, eta: float = 0.0, *, std: S | None = None) -> Row:
        """`x_s ~ N(α_s x̂_0 + √(σ_s² − c²) (x_t − α_t x̂_0)/σ_t, c²)`, with c = `std` or η · `posterior_std(t, s)`.

        The row's output is x̂_0. Every c gives the right marginal at s. η = 1 is the posterior `q(x_s | x_t, x̂_0)`,
        η = 0 has no noise and may go up, s > t; t = s with c > 0 redraws a part of the noise.

        Raises:
            ValueError: η < 0, c > σ_s, or a way up with η > 0. TypeError: η is no number.

        Reference:
            Denoising Diffusion Implicit Models (Song et al., 2021), Eqs. 7, 12, 16.
        """
        check.number("eta", eta, least=0)
        if eta == 0 and std is None:
            return self.bridge(t, s, std=self.sigma(t) * 0.0)

        def row(
            lam_t: Tensor, lam_s: Tensor, alpha_t: Tensor, alpha_s: Tensor, sigma_t: Tensor, sigma_s: Tensor,
            c: Tensor | None = None,
        ) -> Any:  # fmt: skip
            # With r = √(1 − c²/σ_s²): x = r σ_s/σ_t, and m = α_s − x α_t = −α_s expm1(−h + log r).
            if c is None:
                lost = -torch.expm1(2 * (lam_t - lam_s))
                z, gone = eta * sigma_s * lost.sqrt(), eta**2 * lost
                left = (1 - eta) * (1 + eta) + eta**2 * torch.exp(2 * (lam_t - lam_s))  # 1 − gone, to its last digit
            else:
                z, gone = c, torch.where(c > 0, c / sigma_s, 0.0) ** 2
                left = 1 - gone
            log_r = torch.where(gone < 0.5, torch.log1p(-gone), left.log()) / 2
            if bool((log_r + z).isnan().any()):
                raise ValueError(f"eta={eta}, std={std} must leave a variance ≥ 0 from t={t} to s={s}")
            x = log_r.exp() * sigma_s / sigma_t
            # Up to α_s = 0 the product below is 0 · ∞.
            return x, torch.where(alpha_s > 0, -alpha_s * torch.expm1(lam_t - lam_s + log_r), alpha_s - x * alpha_t), z

        curves = (of(u) for of in (self.lam, self.alpha, self.sigma) for u in (t, s))
        x, m, z = _lift_many(row, *curves, *(() if std is None else (std,)))
        return Row(x, (m,), z)

    def below(self, t: float, s: float, eta: float = 1.0) -> float:
        """The time u ≤ s with `κ_u² = κ_s² − c²/α_s²`, c = η · `posterior_std(t, s)`: from there noise c leads up to s.

        An ancestral step goes to u, k-diffusion's sigma_down, and then up. At η = 1, `λ_u = 2λ_s − λ_t`.

        Raises:
            ValueError: η < 0, more noise than there is at s, or α_t = 0.
        """
        number = check.number("eta", eta, least=0)
        if self.alpha(t) == 0:
            raise ValueError(f"an ancestral step begins where alpha > 0, and alpha=0 at t={t}: use a start below it")
        gone = number**2 * -math.expm1(2 * (self.lam(t) - self.lam(s)))
        if gone >= 1:
            raise ValueError(f"eta={eta} must leave a variance > 0 from t={t} to s={s}")
        return s if eta == 0 else self.time(self.lam(s) - math.log1p(-gone) / 2)

    def above(self, t: float, factor: float) -> float:
        """The time where κ is `factor` times that at t, held to [0, 1]."""
        return self.time(self.lam(t) - math.log(factor))

    def gaussian(self, t: S, prediction: Prediction = "x0", v: float = 1.0) -> S:
        """The exact prediction on N(0, v I) data, over the state: `x̂_0 = α v/(α² v + σ²) · x_t`, as `prediction`."""

        def gain(alpha: Tensor, sigma: Tensor) -> Tensor:
            return alpha * v / (alpha**2 * v + sigma**2)

        a, b = self.convert("x0", prediction, t)
        return a + b * _lift(gain, self.alpha(t), self.sigma(t))

    def posterior_variance(self, t: float, v: float = 1.0) -> float:
        """The variance of x_0 given x_t, an entry, when the data are N(0, v I): `v σ²/(α² v + σ²)`."""
        return v * self.sigma(t) ** 2 / (self.alpha(t) ** 2 * v + self.sigma(t) ** 2)

    # -- predictions -------------------------------------------------------------------------------------------------
    def convert(self, source: Prediction, target: Prediction, t: S) -> tuple[S, S]:
        """(a, b) with `target = a·x_t + b·source`, by Cramer's rule in the basis (x_0, ε).

        `x_t = α x_0 + σ ε`, `score = −ε/σ`, `v = α ε − σ x_0`, `flow = α' x_0 + σ' ε`.

        Raises:
            ValueError: a prediction that is none of eps, x0, v, score, flow.
        """
        check.one_of("prediction", source, PREDICTIONS)
        check.one_of("target", target, PREDICTIONS)
        if source == target:
            one = self.alpha(t) * 0.0 + 1.0
            return one * 0.0, one

        def det(u: tuple[Tensor, Tensor], v: tuple[Tensor, Tensor]) -> Tensor:
            return u[0] * v[1] - u[1] * v[0]

        def solve(u: Tensor) -> tuple[Tensor, Tensor]:
            x, on_source, on_target = (self.alpha(u), self.sigma(u)), self.basis(source, u), self.basis(target, u)
            return det(on_target, on_source) / det(x, on_source), det(x, on_target) / det(x, on_source)

        if isinstance(t, Tensor):
            a, b = solve(double(t))
            return a.to(t.dtype), b.to(t.dtype)
        return _once(self, (source, target, float(t)), lambda: _lift_many(solve, t))  # type: ignore[return-value]

    def basis(self, kind: Prediction, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the prediction is of: its weights on x_0 and on ε."""
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        if kind == "eps":
            return zero, one
        if kind == "x0":
            return one, zero
        if kind == "score":
            return zero, -1 / self.sigma(t)
        if kind == "v":
            return -self.sigma(t), self.alpha(t)
        return self.alpha_slope(t), self.sigma_slope(t)


def _spread(std: Tensor, lo: Tensor, hi: Tensor, rate: float = 1.0) -> Tensor:
    """`std √(1 − e^{−2·rate·(hi − lo)})` of two λ; the noise between them."""
    if bool((lo > hi).any()):
        raise ValueError(
            "a transition must go from more signal to less, or its posterior back: the times are in the wrong order"
        )
    return std * (-torch.expm1(2 * rate * (lo - hi))).sqrt()


def _lift(formula: Callable[..., Tensor], *values: S) -> S:
    (out,) = _lift_many(lambda *tensors: (formula(*tensors),), *values)
    return out


def _lift_many(formula: Callable[..., tuple[Tensor, ...]], *values: S) -> tuple[S, ...]:
    """A formula for float64 tensors, on numbers or tensors."""
    out = formula(*(double(v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64)) for v in values))
    dtype = next((v.dtype for v in values if isinstance(v, Tensor)), None)  # type: ignore[attr-defined]
    return cast("tuple[S, ...]", tuple(o.item() if dtype is None else o.to(dtype) for o in out))


def _slope(of: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """The derivative of an elementwise curve."""
    value: Any = torch.func.jvp(of, (t,), (torch.ones_like(t),))[1]
    return cast(Tensor, value)


def _bisect(
    of: Callable[[Tensor], Tensor],
    value: Tensor,
    lo: Tensor,
    hi: Tensor,
    rate: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Where a falling curve takes a value; to the last digit of float64. Its gradient is that of the implicit function.

    With `rate`, at which the curve falls, by Newton's steps, and by halves where these leave the interval; and the gradient is
    by it.
    """
    with torch.no_grad():
        within = (of(hi) <= value) & (value <= of(lo)) & value.isfinite()
        guess = (lo + hi) / 2
        for _ in range(60):
            off = of(guess) - value
            above = off > 0
            lo, hi = torch.where(above, guess, lo), torch.where(above, hi, guess)
            middle, last = (lo + hi) / 2, guess
            if rate is None:
                guess = middle
            else:
                step = guess + off / rate(guess)
                guess = torch.where((lo <= step) & (step <= hi), step, middle)
                if not hidden(guess) and bool(((guess - last).abs() <= 2 * torch.finfo(guess.dtype).eps * last).all()):
                    break
        t = torch.where(of(lo) == value, lo, torch.where(of(hi) == value, hi, guess))
    return _implicit(of, value, t, within, rate)


def _implicit(
    of: Callable[[Tensor], Tensor],
    value: Tensor,
    t: Tensor,
    within: Tensor,
    rate: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The t of `of(t) = value`, found without a graph, with the gradient `dt = (dvalue − dof)/of'(t)`; 0 where t is held."""
    off = value - of(t)
    if not off.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(off):
        return t
    left = torch.where(within, off, 0.0)
    slope = _slope(of, t) if rate is None else -rate(t)
    return t + (left - left.detach()) / torch.where(within, slope, 1.0).detach()
