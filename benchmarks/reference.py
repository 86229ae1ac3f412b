"""What a study is compared to: the cheapest run whose distance to the probability-flow ODE is known.

    python benchmarks/reference.py      # a quarter of an hour of a core

Each candidate runs twice, fine and coarse. A study states the distance between the two; here the fine run's true error stands
beside it, against the same network in float64, solved by dopri5 at 1e-9 (1e-7 for the shipped networks). Figures are root mean
squares an entry, over 24 samples, in the float32 of the study.
"""

import copy

import torch
from rich.console import Console
from rich.table import Table

import scoreflow as sf
from scoreflow.studies.named import load

SUBJECTS = (
    "oracle:ring",
    "oracle:mixture(d=16)",
    "oracle:mixture(d=2, path=cosine)",
    "oracle:digits",
    "zoo:digits",
    "zoo:mnist",
)
CANDIDATES = {
    "dopri5 in t, 1e-5 and 1e-4": [("pf-ode", {"method": "dopri5", "rtol": t, "atol": t}) for t in (1e-5, 1e-4)],
    "dopri5 in t, 1e-4 and 1e-3": [("pf-ode", {"method": "dopri5", "rtol": t, "atol": t}) for t in (1e-4, 1e-3)],
    "DPM-Solver++(2M) on logsnr, 113 and 56": [("dpm-solver++-2m", {"grid": "logsnr", "nfe": n}) for n in (113, 56)],
    "exponential-ab-3 on logsnr, 113 and 56": [("exponential-ab-3", {"grid": "logsnr", "nfe": n}) for n in (113, 56)],
    "UniPC-3, 113 and 56": [("unipc-3", {"form": "noise", "nfe": n}) for n in (113, 56)],
}
"""The last is the default of studies."""
N = 24


def rms(a, b):
    return float((a.double() - b.double()).square().mean().sqrt())


def in_double(model):
    """The same model, its network in float64."""
    twin = copy.deepcopy(model)
    if isinstance(twin.net, torch.nn.Module):  # an oracle follows its state
        twin.net.double()
    return twin


if __name__ == "__main__":
    console = Console(width=150)
    for name in SUBJECTS:
        subject = load(name)
        model, ends = subject.model, {"start": subject.start, "stop": subject.stop}
        more = subject.conditioned(N, 0)
        x_T = sf.White(0).draws("prior")(torch.empty(N, *subject.shape)) * model.path.prior_std(subject.start)
        fine = 1e-7 if name.startswith("zoo") else 1e-9
        truth = sf.solve(in_double(model), x_T.double(), "pf-ode", method="dopri5", rtol=fine, atol=fine, **ends, **more).x
        table = Table("candidate", "evaluations", "stated error", "true error", title=name)
        for label, (first, second) in CANDIDATES.items():
            runs = [sf.solve(model, x_T, sampler, **ends, **options, **more) for sampler, options in (first, second)]
            nfe = sum(sum(run.nfe_per_sample) / N for run in runs)
            table.add_row(label, f"{nfe:.0f}", f"{rms(runs[0].x, runs[1].x):.1e}", f"{rms(runs[0].x, truth):.1e}")
        console.print(table)
