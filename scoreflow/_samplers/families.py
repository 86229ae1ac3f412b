"""The two families by name: the probability-flow ODE and the reverse SDE, by whichever solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scoreflow._core.check import number, one_of
from scoreflow._samplers.blackbox import SCIPY, TORCHDIFFEQ, TORCHSDE, scipy, torchdiffeq, torchsde
from scoreflow._samplers.runge_kutta import TABLEAUS, Variable, prediction_of, runge_kutta
from scoreflow._samplers.step import Linear, Sampler, family

SOLVERS = {"torchdiffeq": TORCHDIFFEQ, "scipy": SCIPY}


@family("pf-ode", also={f"pf-ode-{method}": {"method": method} for method in TABLEAUS})
def pf_ode(
    method: str = "heun",
    variable: Variable = "t",
    solver: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    substeps: int | None = None,
    control: str | None = None,
) -> Sampler:
    """The probability-flow ODE, `dx/dt = f x − ½ g² ∇log p_t`, or `d(x/α)/dλ = −κ ε̂` with `variable="lambda"`.

    `method` is one of ours, euler, midpoint, heun, rk4 (rows, one step an interval of the grid), or one of torchdiffeq's
    or SciPy's, which take rtol, atol, substeps and control as the samplers `torchdiffeq` and `scipy` do. Where a name is
    both ours and theirs, `solver=` says whose. In λ a method sees the SNR of the nodes only. The step to σ = 0 is x̂_0.

    Reference:
        Song et al. (2021), Eq. 13; in λ: DPM-Solver (Lu et al., 2022), Eq. 3.4.
    """
    given: dict[str, Any] = {"rtol": rtol, "atol": atol, "substeps": substeps, "control": control}
    given = {name: value for name, value in given.items() if value is not None}
    if solver is not None:
        one_of("solver", solver, ("scoreflow", *SOLVERS))
    if method in TABLEAUS and solver in (None, "scoreflow"):
        return _rows(method, variable, 0.0, given, ("song2021sde",))
    if method in TORCHDIFFEQ and solver in (None, "torchdiffeq"):
        return torchdiffeq(method=method, variable=variable, **given)
    if method in SCIPY and solver in (None, "scipy"):
        if "substeps" in given:
            raise ValueError(f"substeps={substeps} belongs to fixed methods; scipy's {method} is adaptive: set rtol and atol")
        return scipy(method=method, variable=variable, **given)
    known = {"scoreflow": tuple(TABLEAUS), **SOLVERS}
    listed = "; ".join(f"{name}: {', '.join(methods)}" for name, methods in known.items() if solver in (None, name))
    raise ValueError(f"no method {method!r}{f' of {solver}' if solver else ''}; there are {listed}")


@family("reverse-sde", also={f"reverse-sde-{method}": {"method": method} for method in TABLEAUS})
def reverse_sde(
    method: str = "heun",
    variable: Variable = "t",
    eta: float = 1.0,
    solver: str | None = None,
    adaptive: bool | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    substeps: int | None = None,
) -> Sampler:
    """The reverse SDE `dx = [f x − (1+η²)/2 · g² ∇log p_t] dt + η g dw̄`; in λ, `d(x/α) = −(1+η²) κ ε̂ dλ + √2 η κ dw`.

    `method` is one of ours, euler, midpoint, heun, rk4 (the tableau on the drift, one draw a step shared by its stages:
    heun is of weak order 2, the others of order 1, rk4 with a drift of order 4), or one of torchsde's with
    `solver="torchsde"` or a name that only it has. η = 1 is Anderson's reverse SDE, η → 0 tends to `pf-ode`.

    Reference:
        Song et al. (2021), Eq. 6; heun: Platen's weak scheme for additive noise (Kloeden & Platen, 1992, 15.1).
    """
    number("eta", eta, above=0)
    given: dict[str, Any] = {"adaptive": adaptive, "rtol": rtol, "atol": atol, "substeps": substeps}
    given = {name: value for name, value in given.items() if value is not None}
    if solver is not None:
        one_of("solver", solver, ("scoreflow", "torchsde"))
    if method in TABLEAUS and solver in (None, "scoreflow"):
        return _rows(method, variable, eta, given, ("song2021sde",))
    if method in TORCHSDE and solver in (None, "torchsde"):
        if variable != "t":
            raise ValueError(f"variable={variable!r} is for our own methods; torchsde integrates in t")
        return torchsde(method=method, eta=eta, **given)
    raise ValueError(
        f"no method {method!r}{f' of {solver}' if solver else ''}; there are scoreflow: {', '.join(TABLEAUS)}; "
        f"torchsde: {', '.join(TORCHSDE)}"
    )


def _rows(method: str, variable: Variable, eta: float, given: dict[str, Any], cites: tuple[str, ...]) -> Linear:
    if given:
        name, value = next(iter(given.items()))
        raise ValueError(f"{name}={value} belongs to other solvers; our {method} takes one step an interval of the grid")
    one_of("variable", variable, ("t", "lambda"))
    order = TABLEAUS[method].order if eta == 0 else (2 if method == "heun" else 1)
    return Linear(
        rows=Tabled(method, variable, eta), order=order, cites=cites, prediction=prediction_of(variable, eta), marginal=False
    )


@dataclass(frozen=True)
class Tabled:
    """Rows of one tableau; the family's other options do not reach them."""

    method: str
    variable: Variable
    eta: float

    def __call__(self, path: Any, times: tuple[float, ...], s: float, **_: Any) -> Any:
        return runge_kutta(path, times, s, method=self.method, variable=self.variable, eta=self.eta)
