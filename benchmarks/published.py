"""What docs/published.md says of other code, seen again on what is installed here.

    pip install --no-deps azula einops k-diffusion
    OMP_NUM_THREADS=1 python benchmarks/published.py

diffusers and torchdiffeq come with the development environment. What is not installed is said so.
"""

import functools
import importlib.metadata
import importlib.util
import math
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

import scoreflow as sf

DATA = sf.analysis.problem(d=3)


def unipc_bh1():
    """diffusers, UniPC with bh1 to σ = 0."""
    import diffusers

    scheduler = diffusers.UniPCMultistepScheduler(solver_type="bh1", final_sigmas_type="zero")
    scheduler.set_timesteps(10)
    x = torch.ones(1, 3)
    for t in scheduler.timesteps:
        x = scheduler.step(0.5 * x, t, x).prev_sample
    return f"10 steps end at {x[0, 0].item()}"


def trailing():
    """diffusers, trailing spacing."""
    import diffusers

    scheduler, more = diffusers.DDIMScheduler(timestep_spacing="trailing"), []
    for n in range(1, 1001):
        scheduler.set_timesteps(n)
        more += [n] if len(scheduler.timesteps) != n else []
    return f"another number of steps than asked for {len(more)} of 1000 counts, the first {', '.join(map(str, more[:4]))}"


def single_step():
    """k-diffusion, 2M-SDE and 3M-SDE at one step."""
    sampling, seen = k_diffusion_sampling(), []
    for name in ("sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde"):
        try:
            getattr(sampling, name)(lambda x, sigma: x / 2, torch.ones(1, 3), torch.tensor([10.0, 0.0]), disable=True)
            seen.append(f"{name} runs")
        except UnboundLocalError as error:
            seen.append(f"{name}: {error}")
    return "; ".join(seen)


def batch_mates():
    """k-diffusion, adaptive DPM-Solver: a sample alone and beside others."""
    sampling, model = k_diffusion_sampling(), DATA.model(sf.VESDE(0.01, 80.0))
    x = 80 * torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1:] *= 20

    def denoise(x, sigma):
        return model.x0(x, model.path.time(-sigma.log()))

    alone, beside = (sampling.sample_dpm_adaptive(denoise, batch, 0.01, 80.0, disable=True)[0] for batch in (x[:1], x))
    return f"the first sample of 8 differs by {(alone - beside).abs().max():.1e}"


def past_the_end():
    """torchdiffeq, dopri5: the last time that is asked."""
    import torchdiffeq

    asked = []

    def slope(t, x):
        asked.append(t.item())
        return -x

    torchdiffeq.odeint(slope, torch.ones(3, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64))
    return f"from t = 1 to 0, the drift is asked at t = {min(asked):.3f}"


def adams():
    """torchdiffeq, explicit_adams on the probability-flow ODE in λ, 400 steps."""
    import torchdiffeq

    path = sf.VPSDE()
    model, y = DATA.model(path), torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lam = torch.linspace(path.lam(0.98), path.lam(0.02), 401, dtype=torch.float64)

    def slope(u, y):  # of y = x/α
        t = path.time(float(u))
        return -path.kappa(t) * model.eps(path.alpha(t) * y, t)

    seen = {}
    for name, options in {"its own order": {}, "order 4": {"max_order": 4}}.items():
        end = torchdiffeq.odeint(slope, y / path.alpha(0.98), lam, method="explicit_adams", options=options)[-1]
        seen[name] = f"{end.abs().max():.1e} at {name}"
    return "the largest state at the end is " + ", ".join(seen.values())


def azula_eta():
    """azula, DDIM at η = ½: its noise over that at η = 1."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    class Zero(Denoiser):
        schedule = VPSchedule()

        def forward(self, x_t, t):
            return DiracPosterior(torch.zeros_like(x_t))

    x, t, s = torch.zeros(1_000_000), torch.tensor(0.6), torch.tensor(0.5)
    half, whole = (DDIMSampler(Zero(), eta=eta).step(x, t, s).std().item() for eta in (0.5, 1.0))
    return f"{half / whole:.3f}; the paper's σ(η) = η σ(1) gives 0.5, and √½ is {math.sqrt(0.5):.3f}"


def azula_reab():
    """azula, REAB of order 2: its observed order on N(0, ¼) data, and that of `reab`."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule
    from azula.sample import REABSampler

    class Quarter(Denoiser):
        schedule = VPSchedule()

        def forward(self, x_t, t):
            alpha, sigma = self.schedule(t)
            return DiracPosterior(x_t * alpha / 4 / (alpha**2 / 4 + sigma**2))

    denoiser, x, ends = Quarter(), torch.ones(1, 1, dtype=torch.float64), {"start": 0.9, "stop": 0.1}
    path, data = sf.VPSDE(), sf.Gaussian(torch.zeros(1), torch.eye(1) / 4)
    steps = (20, 40, 80, 160)

    def order(run, std):
        off = [abs(float(run(n)) - std(0.1) / std(0.9)) for n in steps]
        return -float(np.polyfit(np.log(steps), np.log(off), 1)[0])

    def there(t):
        alpha, sigma = denoiser.schedule(torch.tensor(t, dtype=torch.float64))
        return float((alpha**2 / 4 + sigma**2).sqrt())

    def here(t):
        return math.hypot(path.alpha(t) / 2, path.sigma(t))

    theirs = order(lambda n: REABSampler(denoiser, order=2, steps=n, silent=True, dtype=x.dtype, **ends)(x), there)
    ours = order(lambda n: sf.solve(data.model(path), x, "reab-2", steps=n, grid="uniform", **ends).x, here)
    return f"{theirs:.2f}, and {ours:.2f}"


@functools.cache
def k_diffusion_sampling():
    """Its module of samplers alone: the package asks for torchvision and more when it is imported."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        raise ModuleNotFoundError("k_diffusion")
    folder = Path(found.submodule_search_locations[0])
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = [str(folder)]
    package.utils = utils
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    return importlib.import_module("k_diffusion.sampling")


OBSERVED = {
    unipc_bh1: "diffusers",
    trailing: "diffusers",
    single_step: "k-diffusion",
    batch_mates: "k-diffusion",
    past_the_end: "torchdiffeq",
    adams: "torchdiffeq",
    azula_eta: "azula",
    azula_reab: "azula",
}


def main():
    warnings.simplefilter("ignore")
    table = Table("where", "version", "observed", box=box.MARKDOWN)
    for look, package in OBSERVED.items():
        try:
            row = importlib.metadata.version(package), look()
        except ModuleNotFoundError:
            row = "–", "not installed"
        table.add_row(look.__doc__.rstrip("."), *row)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
