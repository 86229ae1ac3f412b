"""Samplers of diffusers and k-diffusion, read back as coefficients: which of ours each is, and which checks fail.

    OMP_NUM_THREADS=1 python benchmarks/audits.py

About two minutes. The table is that of docs/published.md. It says what the installed code does, right ones too.
"""

import importlib
import importlib.util
import sys
import types
from importlib.metadata import version

import scoreflow as sf

STEPS = 10
PLAIN = ("DDIMScheduler", "DDPMScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler")
OPTIONS = {name: {"clip_sample": False} for name in PLAIN}
"""As they are, but for what is no slip: clipping, which is asked for by default."""


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


def found():
    """(package, name, sampler) of all that can be made without arguments."""
    import diffusers

    diffusers.logging.set_verbosity_error()
    schedulers = sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and name[0].isupper())
    for name in schedulers:
        kind = getattr(diffusers, name)
        if hasattr(kind, "step") and not name.startswith("Flax"):
            yield f"diffusers {version('diffusers')}", name, lambda kind=kind, name=name: kind(**OPTIONS.get(name, {}))
    module = k_diffusion()
    for name in sorted(name for name in vars(module) if name.startswith("sample_")):
        yield f"k-diffusion {version('k-diffusion')}", name, lambda name=name: getattr(module, name)


def main():
    print("| where | sampler | is | to | checks that fail |\n|---|---|---|---|---|")
    unread = []
    for where, name, make in found():
        try:
            one = sf.audit(make(), STEPS)
        except Exception as error:
            unread.append(f"{name} ({type(error).__name__})")
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
        print(f"| {where} | `{name}` | {which} | {to} | {failed} |", flush=True)
    print(f"\nNot read: {', '.join(unread)}.")


if __name__ == "__main__":
    main()
