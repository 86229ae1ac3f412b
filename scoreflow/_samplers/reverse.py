"""The first discretisations of the reverse SDE: Euler–Maruyama and reverse diffusion."""

from __future__ import annotations

from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row
from scoreflow._samplers.runge_kutta import runge_kutta
from scoreflow._samplers.step import sampler


@sampler("euler-maruyama", order=1, cites=("song2021sde",), prediction="eps", marginal=False, default_steps=250)
def euler_maruyama(path: GaussianPath, times: tuple[float, ...], s: float) -> list[tuple[float, Row]]:
    """`x_s = x_t + [f x_t − g² ∇log p_t](s − t) + g √(t − s) ε`, f and g at t, `∇log p_t = −ε̂/σ_t`.

    The reverse SDE in t. The step to σ = 0 is x̂_0. For other levels of noise: `reverse-sde` with `method="euler"`.

    Reference:
        Score-Based Generative Modeling through SDEs (Song et al., 2021), Eq. 6 and Appendix E.
    """
    return runge_kutta(path, times, s, method="euler", variable="t", eta=1.0)


@sampler("reverse-diffusion", order=1, cites=("song2021sde",), prediction="eps", marginal=False, default_steps=250)
def reverse_diffusion(path: GaussianPath, times: tuple[float, ...], s: float) -> Row:
    """`x_s = x_t − (α_t/α_s − 1) x_t + c² ∇log p_t + c ε`, where `q(x_t | x_s) = N(α_t/α_s x_s, c²)`.

    The forward step s → t, reversed as it is discretised. On a VP chain `(2 − √(1−β)) x_t + β ∇log p_t + √β ε`, with β
    the chain's at any stride, never β(t)/N. The step to σ = 0 is x̂_0.

    Reference:
        Song et al. (2021), Eqs. 46–47 and Algorithm 3.
    """
    t = times[0]
    step = path.forward(s, t)
    return Row(2.0 - step.x, (-(step.z**2) / path.sigma(t),), step.z)
