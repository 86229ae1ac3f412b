"""Gaussian paths: `x_t = α_t x_0 + σ_t ε`, and every coefficient that follows from it.

A path is the two curves log α and log σ. All that a sampler needs is derived from them here, once, in float64, by
`expm1` and `log1p`, and stays finite where σ → 0 and where α_t = 0. Times run from 0 (data) to 1 (prior).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.check import hidden
from scoreflow._core.deprecated import renamed
from scoreflow._core.elementary import constant, every, exp, expm1, lift, log, log1p, some, sqrt, where
from scoreflow._core.known import Parameters, dual, known, once
from scoreflow._core.row import Row

S = TypeVar("S", float, Tensor)
Prediction = Literal["eps", "x0", "v", "score", "flow"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


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
    @dual
    def log_alpha(self, t: Any) -> Any:
        """log α; every path defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define log_alpha")

    @dual
    def log_sigma(self, t: Any) -> Any:
        """log σ; every path defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define log_sigma")

    @dual
    def alpha(self, t: Any) -> Any:
        """α."""
        return exp(self.log_alpha(t))

    @dual
    def sigma(self, t: Any) -> Any:
        """σ."""
        return exp(self.log_sigma(t))

    @dual
    def lam(self, t: Any) -> Any:
        """λ = log α − log σ."""
        return self.log_alpha(t) - self.log_sigma(t)

    @dual
    def kappa(self, t: Any) -> Any:
        """κ = σ/α."""
        return exp(-self.lam(t))

    # -- the forward SDE ---------------------------------------------------------------------------------------------
    @dual
    def f(self, t: Any) -> Any:
        """f = d log α/dt."""
        return _slope(self.log_alpha, t)

    @dual
    def g2(self, t: Any) -> Any:
        """g² = dσ²/dt − 2 f σ² = −2 σ² dλ/dt."""
        return -2 * self.sigma(t) ** 2 * _slope(self.lam, t)

    @dual
    def alpha_slope(self, t: Any) -> Any:
        """dα/dt = f α."""
        return self.f(t) * self.alpha(t)

    @dual
    def sigma_slope(self, t: Any) -> Any:
        """dσ/dt = f σ + g²/(2σ); infinite where σ = 0 and g > 0."""
        return self.f(t) * self.sigma(t) + self.g2(t) / (2 * self.sigma(t))

    @dual
    def lam_slope(self, t: Any) -> Any:
        """dλ/dt = −g²/(2σ²)."""
        return -self.g2(t) / (2 * self.sigma(t) ** 2)

    @dual
    def time(self, lam: Any) -> Any:
        """The t with λ(t) = lam, held to [0, 1]; by bisection unless the path has a closed form."""
        return bisect(self.lam, lam, constant(0.0, lam), constant(1.0, lam))

    # -- transitions -------------------------------------------------------------------------------------------------
    def prior_std(self, t: S) -> S:
        """`√(α² + σ²)`, what the states at t have for a standard deviation when the data have mean 0 and variance 1.

        It is 1 on a VP path. The prior at t is N(0, prior_std² I).
        """
        return _lift(_hypot, self.alpha(t), self.sigma(t))

    def forward(self, t: S, u: S) -> Row:
        """`q(x_u | x_t)` for u ≥ t: `x_u = (α_u/α_t) x_t + √(σ_u² − (α_u σ_t/α_t)²) ε`.

        Raises:
            ValueError: u < t.
        """
        x = _lift(lambda a, b: exp(a - b), self.log_alpha(u), self.log_alpha(t))
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
            std = self.sigma(t) * 0.0

        def row(lam_t: Any, alpha_t: Any, sigma_t: Any, lam_s: Any, alpha_s: Any, sigma_s: Any, c: Any = None) -> Any:
            # With r = √(1 − c²/σ_s²): x = r σ_s/σ_t, and m = α_s − x α_t = −α_s expm1(−h + log r).
            if c is None:
                lost = -expm1(2 * (lam_t - lam_s))
                z, gone = eta * sigma_s * sqrt(lost), eta**2 * lost
                left = (1 - eta) * (1 + eta) + eta**2 * exp(2 * (lam_t - lam_s))  # 1 − gone, to its last digit
            else:
                z, gone = c, where(c > 0, c / sigma_s, 0.0) ** 2
                left = 1 - gone
            log_r = where(gone < 0.5, log1p(-gone), log(left)) / 2
            if some(log_r + z != log_r + z):  # NaN
                raise ValueError(f"eta={eta}, std={std} must leave a variance ≥ 0 from t={t} to s={s}")
            x = exp(log_r) * sigma_s / sigma_t
            # Up to α_s = 0 the product below is 0 · ∞.
            return x, where(alpha_s > 0, -alpha_s * expm1(lam_t - lam_s + log_r), alpha_s - x * alpha_t), z

        x, m, z = lift(row, *self._levels(t), *self._levels(s), *(() if std is None else (std,)))
        return Row(x, (m,), z)

    def _levels(self, t: S) -> tuple[S, S, S]:
        """λ, α and σ."""

        def found() -> tuple[S, S, S]:
            return self.lam(t), self.alpha(t), self.sigma(t)

        return found() if isinstance(t, Tensor) else once(self, ("levels", t), found)

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

        def gain(alpha: Any, sigma: Any) -> Any:
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
        if isinstance(t, float) and (found := known(self).get((source, target, t))) is not None:
            return found
        check.one_of("prediction", source, PREDICTIONS)
        check.one_of("target", target, PREDICTIONS)
        if source == target:
            one = self.alpha(t) * 0.0 + 1.0
            return one * 0.0, one

        def det(u: tuple[Any, Any], v: tuple[Any, Any]) -> Any:
            return u[0] * v[1] - u[1] * v[0]

        def solve(u: Any) -> tuple[Any, Any]:
            x, on_source, on_target = (self.alpha(u), self.sigma(u)), self.basis(source, u), self.basis(target, u)
            return det(on_target, on_source) / det(x, on_source), det(x, on_target) / det(x, on_source)

        if isinstance(t, Tensor):
            return lift(solve, t)  # type: ignore[return-value]
        return once(self, (source, target, float(t)), lambda: lift(solve, float(t)))  # type: ignore[return-value]

    def basis(self, kind: Prediction, t: S) -> tuple[S, S]:
        """What the prediction is of: its weights on x_0 and on ε."""
        zero, one = constant(0.0, t), constant(1.0, t)
        if kind == "eps":
            return zero, one
        if kind == "x0":
            return one, zero
        if kind == "score":
            return zero, -1 / self.sigma(t)
        if kind == "v":
            return -self.sigma(t), self.alpha(t)
        return self.alpha_slope(t), self.sigma_slope(t)


def _hypot(a: Any, b: Any) -> Any:
    return torch.hypot(a, b) if isinstance(a, Tensor) else math.hypot(a, b)


def _spread(std: Any, lo: Any, hi: Any, rate: float = 1.0) -> Any:
    """`std √(1 − e^{−2·rate·(hi − lo)})` of two λ; the noise between them."""
    if some(lo > hi):
        raise ValueError(
            "a transition must go from more signal to less, or its posterior back: the times are in the wrong order"
        )
    return std * sqrt(-expm1(2 * rate * (lo - hi)))


def _lift(formula: Callable[..., Any], *values: S) -> S:
    (out,) = lift(lambda *each: (formula(*each),), *values)
    return out


def _slope(of: Callable[[Any], Any], t: S) -> S:
    """The derivative of an elementwise curve."""
    if not isinstance(t, Tensor):
        return _slope(of, torch.tensor(t, dtype=torch.float64)).item()
    value: Any = torch.func.jvp(of, (t,), (torch.ones_like(t),))[1]
    return cast(Tensor, value)


def bisect(
    of: Callable[[Any], Any],
    value: S,
    lo: S,
    hi: S,
    rate: Callable[[Any], Any] | None = None,
    piece: Callable[[Any], Any] | None = None,
) -> S:
    """Where a falling curve takes a value, held to [lo, hi]; to the last digit of float64. Its gradient is that of the implicit
    function.

    With `rate`, at which the curve falls, by Newton's steps, and by halves where these leave the interval; and the gradient is
    by it. `piece` is the curve between lo and hi, if that is quicker to have.
    """
    near, tensor = piece or of, isinstance(value, Tensor)
    eps = torch.finfo(value.dtype if isinstance(value, Tensor) else torch.float64).eps
    with torch.no_grad():
        low, high = of(lo), of(hi)
        beyond = (value >= low) | (value <= high)
        guess: Any = (lo + hi) / 2
        if rate is not None:
            secant = lo + (hi - lo) * ((low - value) / (low - high))
            guess = where((lo <= secant) & (secant <= hi), secant, guess)
        t: Any = where(value >= low, lo, hi)
        for _ in range(60):
            off = near(guess) - value
            above = off > 0
            lo, hi = where(above, guess, lo), where(above, hi, guess)
            middle, last = (lo + hi) / 2, guess
            if rate is None:
                guess = middle
            else:
                step = guess + off / rate(guess)
                guess = where((lo <= step) & (step <= hi), step, middle)
                if not (tensor and hidden(guess)) and every((abs(guess - last) <= 2 * eps * last) | beyond):
                    break
        if rate is None:
            guess = where(near(lo) == value, lo, where(near(hi) == value, hi, guess))
        t = where(beyond, t, guess)
    within = (high <= value) & (value <= low)
    return _implicit(of, value, t, within & value.isfinite(), rate) if isinstance(value, Tensor) else t


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
