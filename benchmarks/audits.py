"""Samplers of diffusers, k-diffusion and azula, read back as coefficients: which of ours each is, and which checks fail.

    OMP_NUM_THREADS=1 python benchmarks/audits.py
    OMP_NUM_THREADS=1 python benchmarks/audits.py --path dpm-solver UniPC score_sde_pytorch edm flow_grpo

About four minutes. The table is that of docs/published.md. It says what the installed code does, right ones too. With --path it
reads files, or what lies in folders: checkouts of what no registry has. Of DPM-Solver, UniPC, score_sde, EDM and Flow-GRPO it
tries their options; of other files all that is recognised by what it takes.
"""

import contextlib
import importlib
import importlib.util
import inspect
import io
import itertools
import sys
import types
from argparse import ArgumentParser
from importlib.metadata import version
from pathlib import Path
from unittest.mock import MagicMock

import scoreflow as sf
from scoreflow._audit.found import KINDS, OWN_WORDS

STEPS = 10
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


def k_diffusion():
    """Its samplers, without what the package imports to train."""
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
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*.py") if file.name in FILES)
        for file in files:
            module = loaded(file)
            sde = sys.modules.get("sde_lib")
            own = {name for name, one in vars(module).items() if getattr(one, "__module__", "") == file.stem and known(one)}
            for name, tried in (FILES.get(file.name) or {name: [{}] for name in sorted(own)}).items():
                for options in tried:
                    options = {**options, "sde": getattr(sde, options["sde"])} if "sde" in options else options
                    if hasattr(module, name):
                        yield file.name, name, getattr(module, name), options


def known(thing):
    """Whether it is recognised by what it takes."""
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return False
    return any(recognises(thing) for recognises, _ in (*OWN_WORDS, *KINDS[:-1]))


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--path", nargs="+", help="Files, or folders with checkouts.")
    paths = parser.parse_args().path
    print("| where | sampler | is | to | checks that fail |\n|---|---|---|---|---|")
    unread = []
    for where, name, sampler, options in in_files(paths) if paths else installed():
        steps = options.get("steps", STEPS)
        options = {option: value for option, value in options.items() if option != "steps"}
        shown = ", ".join(
            f"{key}={getattr(value, '__name__', value)}" for key, value in options.items() if paths or "eta" in key
        )
        label = f"`{name}`" + (f" ({shown}{f', {steps} steps' if steps != STEPS else ''})" if shown else "")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                one = sf.audit(sampler, steps, **options)
        except Exception as error:
            unread.append(f"- {label}: {str(error).partition('; it takes')[0] or type(error).__name__}")
            continue
        if one.same:
            off = max(near.apart for near in one.nearest if near.step is None)
            which, to = f"`{one.same[0]}`", f"{off:.0e}"
        elif one.nearest:
            near = one.nearest[0]
            which, to = f"not `{near.name}`, from call {near.step} on", f"{near.apart:.0e}"
        else:
            which, to = "–", ""
        failed = ", ".join(f"`{check.name}`" for check in one.failures) or "none"
        print(f"| {where} | {label} | {which} | {to} | {failed} |", flush=True)
    print("\nNot read:\n\n" + "\n".join(unread))


if __name__ == "__main__":
    main()
