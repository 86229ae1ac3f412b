"""Other people's integrators as steps: torchdiffeq and SciPy on the probability-flow ODE, torchsde on the reverse SDE.

They integrate between the times of the grid. Error is controlled for the batch (`control="batch"`: torchdiffeq by the
worst sample's RMS, SciPy and torchsde by their own RMS over all entries), or for each sample by itself
(`control="sample"`): then a sample does not depend on its batch-mates, at the price of a loop over them.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from scoreflow._core.check import flag, number, one_of, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.noise import BrownianDraws, Draws, stream_key
from scoreflow._core.row import double_on, flat
from scoreflow._samplers.plan import Model, Network
from scoreflow._samplers.runge_kutta import Variable, check_variable, prediction_of, reverse_family
from scoreflow._samplers.step import Sampler, Step, family, landing

TORCHDIFFEQ_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
TORCHDIFFEQ_FIXED = {
    "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 4, "implicit_adams": 4, "fixed_adams": 4,
}  # fmt: skip
"""With their orders."""
TORCHDIFFEQ = (*TORCHDIFFEQ_ADAPTIVE, *TORCHDIFFEQ_FIXED, "scipy_solver")
SCIPY = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
TORCHSDE_ITO = ("euler", "milstein", "srk")
TORCHSDE_STRATONOVICH = ("midpoint", "heun", "euler_heun", "reversible_heun", "log_ode")
TORCHSDE = (*TORCHSDE_ITO, *TORCHSDE_STRATONOVICH)
Control = Literal["batch", "sample"]


@family("torchdiffeq")
def torchdiffeq(
    method: str = "dopri5",
    variable: Variable = "t",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    substeps: int = 1,
    control: Control = "batch",
) -> Sampler:  # fmt: skip
    """The probability-flow ODE `dx/dt = f x − ½ g² ∇log p_t`, or `d(x/α)/dλ = −κ ε̂`, by torchdiffeq.

    Every method it has: adaptive ones obey rtol and atol, of the RMS of the worst sample; fixed ones take `substeps`
    steps between two times of the grid (the Adams methods start anew there, and are held to order 4: at its default
    order of 12 the explicit one blows up). The step to σ = 0 is x̂_0.

    Reference:
        Song et al. (2021), Eq. 13; torchdiffeq (Chen, 2018).
    """
    one_of("method", method, TORCHDIFFEQ)
    order = TORCHDIFFEQ_FIXED.get(method)
    return TorchDiffEq(
        order=order, cites=("song2021sde", "chen2018torchdiffeq"), default_steps=50 if order else None,
        **_checked(method, variable, rtol, atol, substeps, control),
    )  # fmt: skip


@family("scipy")
def scipy(
    method: str = "RK45", variable: Variable = "t", rtol: float = 1e-5, atol: float = 1e-5, control: Control = "batch"
) -> Sampler:
    """The probability-flow ODE `dx/dt = f x − ½ g² ∇log p_t`, or `d(x/α)/dλ = −κ ε̂`, by SciPy's `solve_ivp`.

    It runs in float64 on the host. The step to σ = 0 is x̂_0.

    RK45, RK23, DOP853, LSODA, and the implicit Radau and BDF, whose Jacobians by differences evaluate the network once for
    every entry of the state: for small states only.

    Reference:
        Song et al. (2021), Appendix D.4; SciPy (Virtanen et al., 2020).
    """
    one_of("method", method, SCIPY)
    return SciPy(
        cites=("song2021sde", "virtanen2020scipy"), default_steps=None,
        **_checked(method, variable, rtol, atol, 1, control),
    )  # fmt: skip


@family("torchsde")
def torchsde(
    method: str = "euler", eta: float = 1.0, adaptive: bool = False, rtol: float = 1e-3, atol: float = 1e-3, substeps: int = 1
) -> Sampler:
    """The reverse SDE `dx = [f x − (1+η²)/2 · g² ∇log p_t] dt + η g dw̄` by torchsde, in −t.

    Itô methods euler, milstein, srk; Stratonovich ones midpoint, heun, euler_heun, reversible_heun, log_ode: the noise
    is additive, so the two readings agree. Noise comes from the run's Brownian path, except that srk and log_ode, which
    need areas too, have torchsde's own path of the same seeds. `adaptive` obeys rtol and atol of an RMS over the batch.

    Reference:
        Song et al. (2021), Eq. 6; torchsde: Scalable Gradients for SDEs (Li et al., 2020).
    """
    one_of("method", method, TORCHSDE)
    number("eta", eta, above=0), flag("adaptive", adaptive)
    return TorchSDE(
        order=None if adaptive else 1, cites=("song2021sde", "li2020torchsde"), brownian=True,
        default_steps=None if adaptive else 250,
        eta=eta, adaptive=adaptive, **_checked(method, "t", rtol, atol, substeps, "batch"),
    )  # fmt: skip


def _checked(method: str, variable: Variable, rtol: float, atol: float, substeps: int, control: Control) -> dict[str, Any]:
    one_of("variable", variable, ("t", "lambda"))
    one_of("control", control, ("batch", "sample"))
    number("rtol", rtol, above=0)
    number("atol", atol, above=0)
    whole("substeps", substeps)
    return dict(method=method, variable=variable, rtol=rtol, atol=atol, substeps=substeps, control=control)


@dataclass(frozen=True, repr=False)
class BlackBox(Sampler):
    """Someone else's integrator between two times of the grid; the step to σ = 0 is x̂_0."""

    method: str = ""
    variable: Variable = "t"
    rtol: float = 1e-5
    atol: float = 1e-5
    substeps: int = 1
    control: Control = "batch"

    @property
    def stochastic(self) -> bool:
        return False

    def step(self, model: Network, x: Tensor, t: float, s: float, memory: tuple[()], noise: Draws) -> Step:
        if model.path.sigma(s) == 0:
            return Step(landing(model.path, t, s, "x0")(x, [model(x, t, "x0")]))
        check_variable(model.path, t, self.variable, 0.0)
        if not x.numel():
            return Step(x)
        if self.control == "batch":
            return Step(self._integrate(model, x, t, s, noise))
        return Step(torch.cat([self._integrate(model.part(i, i + 1), x[i : i + 1], t, s, noise) for i in range(len(x))]))

    def _integrate(self, model: Network, x: Tensor, t: float, s: float, noise: Draws) -> Tensor:
        raise NotImplementedError


class Field:
    """`dy/du` of the probability-flow ODE, y = x/μ, in the variable u from t to s; times are held to [s, t]."""

    def __init__(self, model: Model, t: float, s: float, variable: Variable) -> None:
        self.model, self.t, self.s, self.variable = model, t, s, variable
        path = model.path
        self.ends = (path.lam(t), path.lam(s)) if variable == "lambda" else (t, s)
        self.scales = (path.alpha(t), path.alpha(s)) if variable == "lambda" else (1.0, 1.0)

    def __call__(self, u: float, y: Tensor) -> Tensor:
        time = self.model.path.time(u) if self.variable == "lambda" else u
        time = min(max(time, self.s), self.t)
        rate = reverse_family(self.model.path, time, self.variable, 0.0)
        return rate.b * self.model(y * rate.scale, time, prediction_of(self.variable, 0.0))


@dataclass(frozen=True, repr=False)
class TorchDiffEq(BlackBox):
    """See `torchdiffeq`."""

    def evaluations(self, path: GaussianPath, times: tuple[float, ...]) -> int | None:
        per_step = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}.get(self.method)
        landed = path.sigma(times[-1]) == 0
        nfe = (per_step or 0) * self.substeps * (len(times) - 1 - landed) + landed - (self.analytic is not None)
        return None if per_step is None else nfe

    def _integrate(self, model: Network, x: Tensor, t: float, s: float, noise: Draws) -> Tensor:
        from torchdiffeq import odeint

        field = Field(model, t, s, self.variable)
        begin = x.to(torch.promote_types(x.dtype, torch.float32))  # tolerances are below what 16 bits hold
        u = torch.tensor(field.ends, dtype=double_on(x.device), device=x.device)
        options: dict[str, Any] = {}
        if self.method in TORCHDIFFEQ_ADAPTIVE:
            # Land on the end instead of passing it, where the path may stop; and let the worst sample decide.
            options = {"step_t": u[1:], "norm": worst_sample, "dtype": u.dtype}
        elif self.method in TORCHDIFFEQ_FIXED:
            options = {"step_size": abs(field.ends[1] - field.ends[0]) / self.substeps}
            if self.substeps == 1:
                options = {}  # one step exactly, whatever rounding does to a step size
            if "adams" in self.method:
                options["max_order"] = 4
        else:
            options = {"solver": "LSODA"}
        ys = odeint(
            lambda v, y: field(float(v), y), begin / field.scales[0], u, rtol=self.rtol, atol=self.atol,
            method=self.method, options=options,
        )  # fmt: skip
        y: Tensor = ys[-1]
        return (y * field.scales[1]).to(x.dtype)


def worst_sample(e: Tensor) -> Tensor:
    """The largest RMS of any sample of a batch (B, ...)."""
    return e.flatten(1).square().mean(1).sqrt().amax() if e.ndim > 1 else e.square().mean().sqrt()


@dataclass(frozen=True, repr=False)
class SciPy(BlackBox):
    """See `scipy`."""

    def _integrate(self, model: Network, x: Tensor, t: float, s: float, noise: Draws) -> Tensor:
        from scipy.integrate import solve_ivp

        field = Field(model, t, s, self.variable)

        def rate(u: float, y: Any) -> Any:
            state = torch.as_tensor(y, dtype=torch.float64).reshape(x.shape).to(x)
            slope = field(u, state)
            if slope.requires_grad or (x.requires_grad and torch.is_grad_enabled()):
                raise ValueError("grad=True: scipy integrates outside torch, which records nothing of it; use torchdiffeq")
            return slope.flatten().numpy(force=True).astype(float)

        begin = (x / field.scales[0]).flatten().numpy(force=True).astype(float)
        solution = solve_ivp(rate, field.ends, begin, method=self.method, rtol=self.rtol, atol=self.atol)
        if not solution.success:
            raise RuntimeError(f"scipy's {self.method} failed between t={t} and s={s}: {solution.message}")
        return torch.as_tensor(solution.y[:, -1]).reshape(x.shape).to(x) * field.scales[1]


@dataclass(frozen=True, repr=False)
class TorchSDE(BlackBox):
    """See `torchsde`."""

    eta: float = 1.0
    adaptive: bool = False

    @property
    def stochastic(self) -> bool:
        return True

    def evaluations(self, path: GaussianPath, times: tuple[float, ...]) -> int | None:
        landed = path.sigma(times[-1]) == 0
        plain = self.method == "euler" and not self.adaptive
        nfe = self.substeps * (len(times) - 1 - landed) + landed - (self.analytic is not None)
        return nfe if plain else None

    def _integrate(self, model: Network, x: Tensor, t: float, s: float, noise: Draws) -> Tensor:
        from torchsde import sdeint

        if not isinstance(noise, BrownianDraws):
            raise ValueError("torchsde needs a Brownian path: give seed= or noise=Brownian(seeds), not replayed draws")
        check_variable(model.path, t, "t", self.eta)
        sde = ReverseSDE(model, x.shape, t, s, self.eta, "ito" if self.method in TORCHSDE_ITO else "stratonovich")
        bm: Any = Increments(noise, x)
        if self.method in ("srk", "log_ode"):
            bm = _own_path(noise, x, t, s, "space-time" if self.method == "srk" else "foster")
        with warnings.catch_warnings():
            # It warns of adaptive Euler with noise that is not additive; ours is, under the type "diagonal".
            warnings.filterwarnings("ignore", message="Numerical solution is not guaranteed")
            ys = sdeint(
                sde, flat(x), torch.tensor([-t, -s], dtype=torch.float64), bm=bm, method=self.method,
                dt=(t - s) / (16 if self.adaptive else self.substeps) * (1 + 1e-12),  # or rounding adds a step of no length
                adaptive=self.adaptive, rtol=self.rtol, atol=self.atol,
            )  # fmt: skip
        y: Tensor = ys[-1]
        return y.reshape(x.shape).to(x.dtype)


class ReverseSDE:
    """The reverse SDE of level η in u = −t, as torchsde reads it: drift f, diffusion g, states (B, d)."""

    noise_type = "diagonal"

    def __init__(self, model: Model, shape: torch.Size, t: float, s: float, eta: float, sde_type: str) -> None:
        self.model, self.shape, self.t, self.s, self.eta, self.sde_type = model, shape, t, s, eta, sde_type
        self._last: tuple[float, Tensor, Tensor] | None = None

    def _rates(self, u: Any) -> Any:
        time = min(max(-float(u), self.s), self.t)
        return time, reverse_family(self.model.path, time, "t", self.eta)

    def f(self, u: Any, y: Tensor) -> Tensor:
        """Minus the drift in t: u = −t runs backwards."""
        time, rate = self._rates(u)
        # torchsde evaluates twice at the same place: to learn the shape, and for a whole and a half step.
        if self._last is None or self._last[0] != time or self._last[1] is not y:
            eps = self.model(y.reshape(self.shape), time, "eps").reshape(y.shape)
            self._last = time, y, -(rate.a * y + rate.b * eps)
        return self._last[2]

    def g(self, u: Any, y: Tensor) -> Tensor:
        """η g, for every entry."""
        return torch.full_like(y, math.sqrt(self._rates(u)[1].c2))


class Increments:
    """A Brownian path of ours, as torchsde asks for it."""

    levy_area_approximation = "none"

    def __init__(self, noise: BrownianDraws, x: Tensor) -> None:
        self.noise, self.like, self.shape = noise, x, flat(x).shape
        self.dtype, self.device = x.dtype, x.device

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:
        """W over [ta, tb] in −t."""
        self.noise.count += 1
        return self.noise.increment(self.like, -float(ta), -float(tb)).reshape(self.shape).to(self.dtype)


def _own_path(noise: BrownianDraws, x: Tensor, t: float, s: float, area: str) -> Any:
    """torchsde's Brownian path with areas, one for each of the run's seeds."""
    from torchsde import BrownianInterval

    noise.count += 1
    y = flat(x)
    seeds = noise.source.seeds if isinstance(noise.source.seeds, tuple) else (noise.source.seeds,)
    size = (1 if len(seeds) > 1 or len(y) == 1 else len(y), y.shape[1])
    paths = [
        BrownianInterval(t0=-t, t1=-s, size=size, dtype=x.dtype, device=x.device, entropy=stream_key(seed, "torchsde", t, s),
                         levy_area_approximation=area)
        for seed in seeds
    ]  # fmt: skip
    return paths[0] if len(paths) == 1 else Stacked(paths, y)


class Stacked:
    """One Brownian path a sample."""

    def __init__(self, paths: list[Any], flat: Tensor) -> None:
        self.paths, self.shape, self.dtype, self.device = paths, flat.shape, flat.dtype, flat.device
        self.levy_area_approximation = paths[0].levy_area_approximation

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        """What each path gives, joined along the batch."""
        out = [path(ta, tb, return_U=return_U, return_A=return_A) for path in self.paths]
        return torch.cat(out) if isinstance(out[0], Tensor) else tuple(torch.cat(part) for part in zip(*out, strict=True))
