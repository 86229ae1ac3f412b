"""The runs of the reference files of CIFAR-10 against the code that gave the figures, on toy networks in float64.

    python benchmarks/reference_peers.py --edm edm --diff-sampler diff-sampler --ddim ddim

The three are clones of NVlabs/edm, zju-pi/diff-sampler and ermongroup/ddim from GitHub. Printed is the largest difference of
states over their standard deviation.
"""

import argparse
import ast
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import scoreflow as sf


def functions(file, *names, **beside):
    """Functions of a file whose other imports are not wanted."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    found = {"np": np, "torch": torch, **beside}
    exec(compile(tree, str(file), "exec"), found)
    return [found[name] for name in names]


def denoiser(x, sigma, class_labels=None, **_):
    """Of no data, rough enough to show a wrong level or weight."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh(1.3 * x / (0.5 + sigma**2) ** 0.5) * (0.45 / (0.25 + sigma**2) ** 0.5 + 0.8)


def noise(x, t):
    """The same as ε̂, told a label."""
    return torch.sin(x) * 0.7 + 0.001 * t.reshape(-1, 1, 1, 1).to(x)


def levels(edm, diff_sampler, z):
    """(cell, our states, theirs) of EDM's network."""
    sys.path.insert(0, str(diff_sampler / "diff-solvers-main"))
    import solvers

    (edm_sampler,) = functions(edm / "generate.py", "edm_sampler")
    denoiser.sigma_min, denoiser.sigma_max, denoiser.round_sigma = 0.0, float("inf"), torch.as_tensor
    theirs = {
        "edm@karras": lambda n: edm_sampler(denoiser, z, num_steps=(n + 1) // 2),
        "ddim@karras to 0.002": lambda n: solvers.euler_sampler(denoiser, z, num_steps=n + 1),
        "edm@karras to 0.002": lambda n: solvers.heun_sampler(denoiser, z, num_steps=n // 2 + 1),
        "dpm-2@karras to 0.002": lambda n: solvers.dpm_2_sampler(denoiser, z, num_steps=n // 2 + 1),
        "ipndm-4@karras to 0.002": lambda n: solvers.ipndm_sampler(denoiser, z, num_steps=n + 1),
        "dpm-solver++-3m-published@logsnr to 0.002": lambda n: solvers.dpm_pp_sampler(
            denoiser, z, num_steps=n + 1, schedule_type="logsnr"
        ),
        "unipc-3@logsnr to 0.002": lambda n: solvers.unipc_sampler(denoiser, z, num_steps=n + 1, schedule_type="logsnr"),
    }
    model = sf.from_edm(denoiser)
    for cell in sf.reference.load("edm-vp-cifar10").cells:
        held = model if cell.limit is None else sf.Thresholding(model, cell.limit, percentile=cell.percentile)
        yield cell, sf.solve(held, 80 * z, **cell.asked(model.path)).x, theirs[cell.label](cell.nfe)


def labels(ddim, z):
    """(cell, our states, theirs) of DDPM's network, without noise."""
    compute_alpha, steps = functions(ddim / "functions/denoising.py", "compute_alpha", "generalized_steps")
    steps.__globals__["compute_alpha"] = compute_alpha
    path = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
    model, betas = sf.ScoreModel(noise, path, time="index"), torch.linspace(1e-4, 0.02, 1000)
    torch.Tensor.to, to = lambda x, *a, **k: to(x, *("cpu" if one == "cuda" else one for one in a), **k), torch.Tensor.to
    for cell in sf.reference.load("ddpm-cifar10").chosen(samplers=["ddim"]):
        seq = [int(s) for s in np.linspace(0, np.sqrt(800), cell.nfe) ** 2]
        yield cell, sf.solve(model, z, **cell.asked(path)).x, steps(z, seq, noise, betas, eta=0.0)[0][-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("edm", "diff-sampler", "ddim"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    z = torch.randn(4, 3, 8, 8, generator=torch.manual_seed(0))
    table = Table("cell", "evaluations", "difference")
    for cell, ours, theirs in (*levels(given.edm, given.diff_sampler, z), *labels(given.ddim, z)):
        table.add_row(cell.label, str(cell.nfe), f"{float((ours - theirs).abs().max() / theirs.std()):.0e}")
    Console(width=100).print(table)
