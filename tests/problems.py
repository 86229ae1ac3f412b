"""Problems that carry their exact answer, shared by the tests."""

import torch

import scoreflow as sf
from scoreflow import analysis
from scoreflow._samplers.step import SAMPLERS, VARIANTS

PATHS = {
    "vp": sf.VPSDE(),
    "cosine": sf.VPSDE.cosine(),
    "chain": sf.VPSDE.from_betas(sf.DDPMChain.linear().beta),
    "sub-vp": sf.SubVPSDE(),
    "ve": sf.VESDE(),
    "flow": sf.Flow(),
}
"""Every kind of path; cosine and flow have alpha = 0 at t = 1."""

CASES: dict[str, dict[str, object]] = {
    "ddpm": {},
    "ddpm beta": {"variance": "beta"},
    "ddpm interpolated": {"variance": "interpolated", "v": 0.3},
    "ddim": {},
    "ddim eta=0.5": {"eta": 0.5},
    "ddim eta=1": {"eta": 1.0},
    "euler-maruyama": {},
    "reverse-diffusion": {},
    **{f"pf-ode {m} {v}": {"method": m, "variable": v} for m in ("euler", "midpoint", "heun", "rk4") for v in ("t", "lambda")},
    **{
        f"reverse-sde {m} {v}": {"method": m, "variable": v}
        for m in ("euler", "midpoint", "heun", "rk4")
        for v in ("t", "lambda")
    },
    "reverse-sde heun eta=0.5": {"method": "heun", "eta": 0.5},
    "exponential-ab 2 data": {"order": 2, "form": "data"},
    "exponential-ab 3": {},
    "exponential-ab 4": {"order": 4},
    "deis tAB3": {},
    "deis rhoAB2": {"degree": 2, "variable": "rho"},
    "dpm-solver 2": {},
    "dpm-solver 3": {"order": 3},
    "dpm-solver++ 2m": {},
    "dpm-solver++ 3m": {"method": "3m"},
    "dpm-solver++ 3m-published": {"method": "3m-published"},
    "dpm-solver++ 2s": {"method": "2s"},
    "dpm-solver++ 3s": {"method": "3s"},
    "unip 2 bh1": {"order": 2, "B": "bh1"},
    "unip 3 noise": {"form": "noise"},
    "unipc 1": {"order": 1},
    "unipc 2 noise bh1": {"order": 2, "form": "noise", "B": "bh1"},
    "unipc 3": {},
    "sde-dpm-solver++ 2m": {},
    "sde-dpm-solver++ 3m": {"method": "3m"},
    "res 2s c2=1": {"method": "2s", "c2": 1.0},
    "gradient-estimation gamma=1.5": {"gamma": 1.5},
    "richardson dpm-solver-2": {"base": "dpm-solver-2"},
    "richardson pf-ode-heun": {"base": "pf-ode-heun"},
    "sde-dpm-solver++ 2s eta=0.5": {"method": "2s", "eta": 0.5, "r1": 0.3},
    "seeds 3 eta=0.5": {"order": 3, "eta": 0.5},
    **{f"seeds {order} noise": {"order": order, "form": "noise"} for order in (1, 2, 3)},
    "seeds 2 noise eta=0.5": {"order": 2, "eta": 0.5, "form": "noise"},
    "dpm-solver++-2s-ancestral eta=0.5": {"eta": 0.5},
    "er-sde 3 sde": {"phi": "sde"},
    "er-sde 3 ode": {"phi": "ode"},
    "er-sde 2 phi=1.25": {"order": 2, "phi": 1.25},
    "analytic-dpm eta=0.5": {"eta": 0.5, "v": 0.7},
    "edm-churn low": {"S_churn": 5.0, "S_tmax": 1.0, "S_noise": 1.01},
    "restart long": {"restarts": 3, "t_max": 1.0, "restart_steps": 2},
    "repaint": {"resamplings": 3},
    "repaint ddim jump=2": {"base": "ddim", "resamplings": 2, "jump": 2},
    "sa-solver": {},
    "reab 3": {"order": 3},
    "dpm-fast 1": {"remainder": 1},
    "dpm-fast 0 eta=1": {"remainder": 0, "eta": 1.0},
    "dc-solver 2 noise": {"ratio": 0.8, "order": 2, "form": "noise"},
    "dc-solver": {"ratio": (1.0, 1.0, 0.9, 1.1)},
    "sa-solver tau=0.4": {"predictor": 3, "corrector": 3, "tau": 0.4},
}
_KNOWN = {sf.get_sampler(case.split()[0], **options) for case, options in CASES.items()}
CASES |= {
    name: {}
    for name, sampler in ((name, sf.get_sampler(name)) for name in (*SAMPLERS, *VARIANTS))
    if isinstance(sampler, sf.Linear) and sampler not in _KNOWN
}
"""Every registered linear sampler, with the options that change its rows; a case's first word is a name."""


def linear(case: str) -> sf.Linear:
    sampler = sf.get_sampler(case.split()[0], **CASES[case])
    assert isinstance(sampler, sf.Linear)
    return sampler


def _rows(case: str) -> str:
    """What a case does on two paths, as text."""
    plans = [linear(case).plan(PATHS[name], (0.9, 0.7, 0.5, 0.35, 0.2, 0.1, 0.0)) for name in ("vp", "ve")]
    return repr([(plan.prediction, plan.history, plan.reuse, plan.steps) for plan in plans])


_FIRST: dict[str, str] = {}
SAME = {case: first for case in CASES if (first := _FIRST.setdefault(_rows(case), case)) != case}
"""Cases whose rows are those of an earlier one (test_identities.py shows it on every path)."""
LINEAR = {case: options for case, options in CASES.items() if case not in SAME}
"""Those that differ: what tests of rows go through."""


CLIMBING = [case for case in LINEAR if case.split()[0] in ("edm-churn", "restart", "repaint")]
"""Those that also go up by noise: their steps are made of others' rows (test_sde_family.py)."""
PLACED = [case for case in LINEAR if case.split()[0] in ("dpm-fast", "heunpp2")]
"""Those whose rows depend on their place in the grid (test_whole_grid.py)."""
ROWS = [case for case in LINEAR if case not in CLIMBING]


mixture = analysis.problem


def states(n: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Standard normal states with a fixed seed."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Classed(torch.nn.Module):
    """A small network of two numbers with a class, whose states are of 32 bits."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 2)

    def forward(self, x, t, y=None):
        shift = 0.0 if y is None else 0.1 * y[:, None]
        return torch.tanh(self.net(torch.cat([x, t[:, None].to(x)], 1))) + x * 0.5 + shift
