"""docs/published.md: samplers of other projects read back as coefficients, and what else is observed of them.

    OMP_NUM_THREADS=1 python benchmarks/published.py --write docs/published.md --peers folder

All schedulers of the installed diffusers, all samplers of k-diffusion and azula; in the folder checkouts of what no registry
has: dpm-solver, UniPC, score_sde_pytorch, edm, flow_grpo. About a quarter of an hour; 10 steps each unless said, at most 100.
Without --write the tables are printed. They say what the code does, right ones too, and not what it was meant to do.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import sys
import types
import warnings
from argparse import ArgumentParser
from importlib.metadata import version
from pathlib import Path
from unittest.mock import MagicMock

import torch

import scoreflow as sf
from scoreflow._audit.found import KINDS, OWN_WORDS

MARK = "<!-- What follows is written by benchmarks/published.py. -->\n"
STEPS, MOST = 10, 100
PLAIN = ("DDIMScheduler", "DDPMScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler", "UnCLIPScheduler")
OPTIONS = {
    **{name: {"clip_sample": False} for name in PLAIN},
    "AmusedScheduler": {"mask_token_id": 0},
    "CMStochasticIterativeScheduler": {"clip_denoised": False},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
    "SCMScheduler": {"intermediate_timesteps": None},
    "VQDiffusionScheduler": {"num_vec_classes": 8},
}
"""As they are, but for what is no slip: clipping, which is asked for by default, and what has no default."""
MULTISTEP = "DPMSolverMultistepScheduler"
MORE = (
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    (MULTISTEP, {"solver_order": 3, "solver_type": "heun"}),
    (MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}),
    (MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"}),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "zero"}),
)
"""With other options than their own."""


def product(**values):
    """Options, each with all values of the others."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


SOLVER = {"algorithm_type": ("dpmsolver", "dpmsolver++")}
CHURN = {"S_churn": 40, "S_min": 0.05, "S_max": 50, "S_noise": 1.003}
VP = {"discretization": "vp", "schedule": "vp", "scaling": "vp"}
FILES = {
    "dpm_solver_pytorch.py": {
        "DPM_Solver": [
            *product(**SOLVER, method=("multistep", "singlestep", "singlestep_fixed"), order=(1, 2, 3)),
            {"order": 3, "denoise_to_zero": True, "skip_type": "logSNR"}, {"solver_type": "taylor"}, {"method": "adaptive"},
        ],
    },
    "uni_pc.py": {
        "UniPC": [
            *product(
                algorithm_type=("noise_prediction", "data_prediction"), variant=("bh1", "bh2", "vary_coeff"), order=(1, 2, 3)
            ),
            {"variant": "bh2", "denoise_to_zero": True, "lower_order_final": False},
        ],
    },
    "sampling.py": {
        name: [*product(sde=("VPSDE", "VESDE"), steps=(10, 100))]
        for name in ("EulerMaruyamaPredictor", "ReverseDiffusionPredictor", "AncestralSamplingPredictor")
    },
    "generate.py": {
        "edm_sampler": [{}, CHURN],
        "ablation_sampler": [
            {}, {"solver": "euler"}, VP, {**VP, "solver": "euler"}, {"discretization": "ve", "schedule": "ve"},
            {"discretization": "iddpm"}, {"alpha": 0.5},
        ],
    },
    "sd3_sde_with_logprob.py": {"sde_step_with_logprob": [{}, {"noise_level": 0.3}]},
}  # fmt: skip
"""By the name of a file, what is in it and the options that are tried."""


@functools.cache
def k_diffusion():
    """Its samplers, without what the package imports to train."""
    importlib.import_module("diffusers")  # which looks for torchvision, before something stands in for it
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(importlib.util.find_spec("k_diffusion").submodule_search_locations)
    sys.modules["k_diffusion"] = package
    if importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.transforms"].functional = None
    return importlib.import_module("k_diffusion.sampling")


def installed():
    """(where, name, sampler, options) of all that is installed."""
    import diffusers

    diffusers.logging.set_verbosity_error()
    for name in sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and name[0].isupper()):
        if hasattr(getattr(diffusers, name), "set_timesteps"):
            yield f"diffusers {version('diffusers')}", name, getattr(diffusers, name), OPTIONS.get(name, {})
    for name, options in MORE:
        yield f"diffusers {version('diffusers')}", name, getattr(diffusers, name), options
    module = k_diffusion()
    for name in sorted(name for name in vars(module) if name.startswith("sample_")):
        yield f"k-diffusion {version('k-diffusion')}", name, getattr(module, name), {}
    azula = importlib.import_module("azula.sample")
    for name in azula.__all__[1:]:
        yield f"azula {version('azula')}", name, getattr(azula, name), {}
    yield f"azula {version('azula')}", "DDIMSampler", azula.DDIMSampler, {"eta": 0.5}


def loaded(file):
    """A file as a module; packages that it asks for and that are not here are taken for granted."""
    sys.path.insert(0, str(file.parent.resolve()))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    while True:
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except ModuleNotFoundError as error:
            sys.modules[error.name] = MagicMock(__path__=[])
        else:
            return module


def in_files(paths):
    """(where, name, sampler, options) of what lies there."""
    for path in map(Path, paths):
        found = [path] if path.is_file() else (file for file in path.rglob("*.py") if file.name in FILES)
        outermost = {file.name: file for file in sorted(found, key=lambda file: -len(file.parts))}  # others are copies
        for file in sorted(outermost.values()):
            where = file.name if path.is_file() else f"{file.relative_to(path).parts[0]}, {file.name}"
            module = loaded(file)
            sde = sys.modules.get("sde_lib")
            own = {name for name, one in vars(module).items() if getattr(one, "__module__", "") == file.stem and known(one)}
            for name, tried in (FILES.get(file.name) or {name: [{}] for name in sorted(own)}).items():
                for options in tried:
                    options = {**options, "sde": getattr(sde, options["sde"])} if "sde" in options else options
                    if hasattr(module, name):
                        yield where, name, getattr(module, name), options


def known(thing):
    """Whether it is recognised by what it takes."""
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return False
    return any(recognises(thing) for recognises, _ in (*OWN_WORDS, *KINDS[:-1]))


# -- audits ----------------------------------------------------------------------------------------------------------------


def audited(peers):
    """The table of all audits, line by line, and then what cannot be read."""
    yield "| where | sampler | is | to | what is off | checks that fail |\n|---|---|---|---|---|---|"
    unread = []
    for where, name, sampler, options in itertools.chain(installed(), in_files(peers)):
        steps = options.get("steps", STEPS)
        options = {option: value for option, value in options.items() if option != "steps"}
        hidden = OPTIONS.get(name, {})
        shown = [f"{key}={getattr(value, '__name__', value)}" for key, value in options.items() if key not in hidden]
        shown += [f"{steps} steps"] if steps != STEPS else []
        label = f"`{name}`" + (f" ({', '.join(shown)})" if shown else "")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                one = sf.audit(sampler, steps, most=MOST, **options)
        except Exception as error:
            unread.append(f"- {where}, {label}: {str(error).partition('; it takes')[0] or type(error).__name__}")
            continue
        which, to = "–", ""
        if one.same:
            which, to = f"`{one.same[0]}`", f"{max(near.apart for near in one.nearest if near.step is None):.0e}"
        elif one.nearest:
            near = one.nearest[0]
            which, to = f"not `{near.name}`, from call {near.step} on", f"{near.apart:.0e}"
        off = "; ".join(map(brief, one.mends))
        failed = ", ".join(f"`{check.name}`" for check in one.failures) or "none"
        yield f"| {where} | {label} | {which} | {to} | {off} | {failed} |"
    yield "\nNot read:\n\n" + "\n".join(unread)


def brief(mend):
    """A weight that is off, in few words."""
    calls = f"call {mend.calls[0]}" if len(mend.calls) == 1 else f"calls {mend.calls[0]}–{mend.calls[-1]}"
    factor = "" if mend.factor is None else " missing" if mend.factor == 0 else f" × {mend.factor:.4g}"
    return f"{mend.weight}{' of its own' if mend.extra else factor}, {calls}"


# -- what no audit sees ----------------------------------------------------------------------------------------------------

DATA = sf.analysis.problem(d=3)


def batch_mates():
    """k-diffusion, adaptive DPM-Solver: a sample alone and beside others."""
    sampling, model = k_diffusion(), DATA.model(sf.VESDE(0.01, 80.0))
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


OBSERVED = {batch_mates: "k-diffusion", past_the_end: "torchdiffeq", adams: "torchdiffeq"}


def observed():
    """The table of what is observed in runs."""
    yield "| where | version | observed |\n|---|---|---|"
    for look, package in OBSERVED.items():
        yield f"| {look.__doc__.rstrip('.')} | {importlib.metadata.version(package)} | {look()} |"


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--peers", nargs="*", default=[], help="Files, or folders with checkouts.")
    parser.add_argument("--write", type=Path, help="The page whose end is written anew.")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = []
    for line in itertools.chain(observed(), [""], audited(chosen.peers)):
        print(line, flush=True)
        lines.append(line)
    if chosen.write:
        begin = chosen.write.read_text(encoding="utf-8").partition(MARK)[0]
        chosen.write.write_text(begin + MARK + "\n".join(["", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
