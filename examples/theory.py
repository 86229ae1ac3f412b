"""What sampler theory says before any network is run: the exact error of eight samplers on Gaussian data.

    OMP_NUM_THREADS=1 python examples/theory.py --out docs/theory.png

It draws the picture and prints the tables of docs/theory.md. Nothing is sampled, so no figure has noise.
"""

import argparse
import functools
import math
from itertools import pairwise

import matplotlib
import torch
from rich import box
from rich.console import Console
from rich.table import Table

import scoreflow as sf
from scoreflow import analysis
from scoreflow.studies import ORACLES, Metric

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.container import ErrorbarContainer

PATH = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)  # "ddpm" in a study
DATA = ("white", "power-law", "digits")
TITLES = ("white: N(0, ¼ I), d = 64", "power law: variances ∝ k⁻², d = 64", "8×8 digits, mean and covariance")
SAMPLERS = {
    "DDPM, β̃": ("ddpm", {}),
    "DDPM, β": ("ddpm", {"variance": "beta"}),
    "DDPM, analytic variance": ("analytic-known", {"data": None}),  # filled in
    "Euler–Maruyama": ("euler-maruyama", {}),
    "DDIM": ("ddim", {}),
    "ODE by Heun": ("pf-ode", {"method": "heun"}),
    "DPM-Solver++ 2M": ("dpm-solver++-2m", {}),
    "UniPC-3": ("unipc", {}),
}
BUDGETS = (5, 10, 20, 50, 100, 200, 500, 1000)
GRIDS = ("trailing", "quadratic", "logsnr", "karras")
INSIDE = {"grid": "uniform", "start": 0.9, "stop": 0.05}
WIDE = {"grid": "logsnr", "start": 1.0, "stop": 1e-3}
LAST = "*the last step alone*"


@functools.cache
def gaussian(data):
    """The data by name."""
    return ORACLES[data]()


@functools.cache
def spectrum(data):
    """The variances in all directions, and these."""
    var, eigenvectors = torch.linalg.eigh(gaussian(data).cov)
    return var.clamp(min=0), eigenvectors


def analytic(path, times, s, *, data="white"):
    """`analytic-dpm` with E tr Cov[x_0 | x_t]/d of these data, known instead of estimated."""
    row, (var, _) = path.bridge(times[0], s, 1.0), spectrum(data)
    mean = float(path.posterior_variance(times[0], var).mean())
    return row._replace(z=math.hypot(row.z, row.m[0] * math.sqrt(mean)) if path.sigma(s) else 0.0)


def made(label, data):
    """A sampler of `SAMPLERS` on these data."""
    name, options = SAMPLERS[label]
    if name == "analytic-known":
        return sf.Linear(name, rows=functools.partial(analytic, data=data), order=1, lands=True, marginal=False)
    return sf.get_sampler(name, **options)


def typed(data):
    """The samplers as a study takes them, and what they are called here."""
    names = {}
    for label, (name, options) in SAMPLERS.items():
        inside = ", ".join(f"{option}={value or data!r}" for option, value in options.items())
        names[f"{name}({inside})" if inside else name] = label
    return names


def w2(law):
    """RMS an entry, as the metric `w2-exact`."""
    return law.w2 / math.sqrt(len(law.mean))


def excess(law):
    """By what share the output has more variance than the data, over all entries."""
    return float(law.cov.trace() / law.target.cov.trace() - 1)


def variance(scene):
    """`excess` of a cell of a study, as a metric of one's own."""
    return excess(analysis.law(scene.plan, scene.path, scene.oracle))


VARIANCE = Metric("variance", "either", ("gaussian", "rows"), variance, samples=False, positive=False)


# -- what no sampler of this kind can better -------------------------------------------------------------------------------


def marginal(data, t):
    """The law of the data noised to t, as a Gaussian."""
    alpha, sigma, oracle = PATH.alpha(t), PATH.sigma(t), gaussian(data)
    return sf.Gaussian(alpha * oracle.mean, alpha**2 * oracle.cov + sigma**2 * torch.eye(len(oracle.mean)))


def through(move, mean, cov, data):
    """The law of an affine map's output, of states (B, d) with this mean and covariance."""
    ends = move(torch.cat([torch.zeros(1, len(mean)), torch.eye(len(mean))]).double())
    gain = (ends[1:] - ends[0]).mT
    return analysis.Law(move(mean[None])[0], gain @ cov @ gain.mT, gaussian(data))


def landed(mean, cov, data, t):
    """The law of x̂_0 at t, what a last step from there gives."""
    return through(lambda x: gaussian(data).denoise(x, PATH.alpha(t), PATH.sigma(t)), mean, cov, data)


def landing(data, steps, grid=None):
    """The law of a run that is perfect down to the last node, and then steps to x̂_0."""
    t = sf.grid(PATH, steps, grid)[-2]
    return landed(marginal(data, t).mean, marginal(data, t).cov, data, t)


def perfect(data, start=1.0, stop=0.0, path=PATH):
    """The law of the exact probability-flow ODE from N(0, I) instead of p_start."""
    d = len(gaussian(data).mean)
    return through(lambda x: gaussian(data).flow(path, x, start, stop), torch.zeros(d).double(), torch.eye(d).double(), data)


def forgetful(data):
    """The law of the exact reverse SDE from N(0, I) instead of p_1: x_0 ~ p(x_0 | x_1), with Cov[x_0 | x_1] on top of x̂_0."""
    d, (var, eigenvectors) = len(gaussian(data).mean), spectrum(data)
    law = landed(torch.zeros(d).double(), torch.eye(d).double(), data, 1.0)
    return law._replace(cov=law.cov + (eigenvectors * PATH.posterior_variance(1.0, var)) @ eigenvectors.mT)


# -- tables ---------------------------------------------------------------------------------------------------------------


def study(data, samplers, **keywords):
    """On the path of the DDPM chain, and its nodes unless grids are given."""
    keywords = {"metrics": ["w2-exact"], "grids": ["trailing"], **keywords}
    return sf.study(f"oracle:{data}(path=ddpm)", samplers, seeds=1, **keywords)


def values(cells, figure, names):
    """A figure by what the sampler is called here and the budget asked."""
    frame = cells.frame[cells.frame["figure"] == figure]
    asked = frame["asked"].fillna(frame["steps"]).astype(int)
    label = [names[name] if name in names else names[name.removesuffix("@trailing")] for name in frame["sampler"]]
    return {(name, n): value for name, n, value in zip(label, asked, frame["value"], strict=True)}


def table(console, title, heads, rows):
    """In Markdown, as in the docs."""
    out = Table(*heads, box=box.MARKDOWN)
    for row in rows:
        out.add_row(*row)
    console.print(f"\n{title}", out)


def shown(numbers, form="{:.2g}"):
    return [form.format(number) for number in numbers]


def errors(console, data, seen):
    """W₂ by evaluations, the least in bold, and what the last step alone costs."""
    least = {n: min(seen[label, n] for label in SAMPLERS) for n in BUDGETS}
    rows = []
    for label in SAMPLERS:
        texts = zip(shown(seen[label, n] for n in BUDGETS), BUDGETS, strict=True)
        rows.append([label, *(f"**{text}**" if seen[label, n] == least[n] else text for text, n in texts)])
    rows.append([LAST, *shown(w2(landing(data, n)) for n in BUDGETS)])
    table(console, f"W₂ on {data}", [data, *map(str, BUDGETS)], rows)


def before(label, data, steps):
    """`excess` at the last node, over that of p_t there."""
    times = sf.grid(PATH, steps)[:-1]
    law = analysis.law(made(label, data), PATH, gaussian(data), grid=times)
    return excess(law._replace(target=marginal(data, times[-1])))


def percent(share):
    return f"{100 * share:+.2g} %" if abs(share) > 1e-7 else "0 %"


def variances(console, seen):
    """Excess of variance, in the end and before the last step."""
    ends, nodes, rows = (5, 10, 20, 50, 100, 1000), (10, 50), []
    for data in DATA:
        for label in list(SAMPLERS)[:5]:
            found = [*(seen[data][label, n] for n in ends), *(before(label, data, n) for n in nodes)]
            rows.append([data, label, *map(percent, found)])
        rows.append([data, LAST, *(percent(excess(landing(data, n))) for n in ends), *(percent(0) for _ in nodes)])
    heads = [*map(str, ends), *(f"before the last step, {n}" for n in nodes)]
    table(console, "Variance beyond that of the data", ["data", "variance", *heads], rows)


def divergences(console, seen):
    """KL."""
    data, some = ("white", "power-law"), (10, 50, 100, 1000)
    rows = [[label, *shown(seen[of][label, n] for of in data for n in some)] for label in SAMPLERS]
    table(console, "KL in nats", ["KL", *(f"{of}, {n}" for of in data for n in some)], rows)


def equal_steps(console, seen):
    """Heun at as many steps as the others, and so at about twice their evaluations."""
    some, rows = (10, 50, 100, 500), []
    for data in DATA:
        heun = values(study(data, ["pf-ode(method='heun')"], steps=some), "w2-exact", typed(data))
        for label in ("ODE by Heun", "DDIM", "DPM-Solver++ 2M"):
            rows.append([data, label, *shown({**seen[data], **heun}[label, n] for n in some)])
    table(console, "W₂ at equal steps", ["data", "steps", *map(str, some)], rows)


def grids(console):
    """W₂ at 20 evaluations on four grids."""
    seen, some = {}, DATA[1:]
    for data in some:
        names = {f"{name}@{grid}": (data, grid, label) for name, label in typed(data).items() for grid in GRIDS}
        cells = study(data, typed(data), nfe=[20], grids=GRIDS)
        seen |= {of: value for (of, _), value in values(cells, "w2-exact", names).items()}
        seen |= {(data, grid, LAST): w2(landing(data, 20, grid)) for grid in GRIDS}
    rows = [[label, *shown(seen[data, grid, label] for data in some for grid in GRIDS)] for label in [*SAMPLERS, LAST]]
    table(console, "W₂ at 20 evaluations by grid", ["20", *(f"{data}, {grid}" for data in some for grid in GRIDS)], rows)


def priors(console):
    """What the prior alone costs."""
    rows, last = [], sf.grid(PATH, max(BUDGETS))[-2]
    for data in DATA:
        node = perfect(data, stop=last)
        laws = (perfect(data), landed(node.mean, node.cov, data, last), forgetful(data))
        rows.append([data, *shown(map(w2, laws))])
    heads = ["probability-flow ODE", "ODE, and the last of 1000 steps", "reverse SDE"]
    table(console, "W₂ of exact solutions from N(0, I)", ["prior", *heads], rows)


def apart(a, b):
    """W₂ between two laws on the same data, RMS an entry; their covariances commute."""
    return w2(analysis.Law(a.mean, a.cov, sf.Gaussian(b.mean, b.cov)))


def slopes(errors, steps):
    """Observed orders between neighbours."""
    return [-math.log(b / a) / math.log(n / m) for (a, b), (m, n) in zip(pairwise(errors), pairwise(steps), strict=True)]


def inside(label, data, steps=160):
    """The order seen in how far the laws of n and 2n steps, and of 2n and 4n, lie apart, away from both ends."""
    laws = {n: analysis.law(made(label, data), PATH, gaussian(data), n, **INSIDE) for n in (steps, 2 * steps, 4 * steps)}
    off = [apart(laws[n], laws[2 * n]) for n in (steps, 2 * steps)]
    return "exact" if max(off) < 1e-9 else f"{slopes(off, (steps, 2 * steps))[0]:.2f}"


def orders(console, seen):
    """Declared, observed inside the path, and observed to data."""
    rows = []
    for label in SAMPLERS:
        own = [inside(label, data) for data in DATA]
        ends = [order for data in DATA for order in slopes([seen[data][label, n] for n in (500, 1000)], (500, 1000))]
        rows.append([label, str(made(label, "white").order), *own, *shown(ends, "{:.2f}")])
    heads = [f"{where}, {data}" for where in ("inside", "to data") for data in DATA]
    table(console, "Order", ["order", "declared", *heads], rows)


def misleading(console):
    """The observed order of an integrator of order 3, on two Gaussians and on a mixture."""
    steps, rows, path = (20, 40, 80, 160, 320), [], sf.VPSDE()
    sampler = sf.get_sampler("exponential-ab", order=3, form="data")
    for data in DATA[:2]:
        exact = perfect(data, WIDE["start"], WIDE["stop"], path)
        missed = [apart(analysis.law(sampler, path, gaussian(data), n, **WIDE), exact) for n in steps]
        rows.append([data, *shown(missed), *shown(slopes(missed, steps), "{:.1f}")])
    missed = analysis.order(sampler, path, steps, **WIDE).errors
    rows.append(["mixture", *shown(missed), *shown(slopes(missed, steps), "{:.1f}")])
    heads = [*map(str, steps), *(f"{m}–{n}" for m, n in pairwise(steps))]
    table(console, "Exponential Adams–Bashforth of order 3, data form, even steps in λ", ["order 3", *heads], rows)


def picture(studies, file):
    """W₂ against evaluations, a panel for each spectrum."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.8), layout="constrained", sharey=True)
    for ax, title, (data, cells) in zip(axes, TITLES, studies.items(), strict=True):
        cells.plot("w2-exact", ax)
        last = [w2(landing(data, n)) for n in BUDGETS]
        ax.plot(BUDGETS, last, color="0.75", linewidth=6, zorder=0, solid_capstyle="round", label=LAST.strip("*"))
        ax.get_legend().remove()
        ax.set(title=title, ylabel="W₂ to the data, RMS an entry" if ax is axes[0] else "")
    lines = {typed(data).get(label, label): line for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    label = [*SAMPLERS, LAST.strip("*")]
    plain = [line[0] if isinstance(line, ErrorbarContainer) else line for line in (lines[name] for name in label)]
    figure.legend(plain, label, loc="outside lower center", ncols=5, frameon=False, handlelength=3.2)
    figure.savefig(file, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="theory.png", help="where the picture goes")
    parser.add_argument("--keep", help="a folder for the studies: what was run before is not run again")
    args = parser.parse_args()
    console = Console(width=320)
    sf.sampler("analytic-known", order=1, cites=("bao2022analytic",), lands=True, marginal=False)(analytic)

    studies = {
        data: study(
            data, typed(data), nfe=BUDGETS, metrics=["w2-exact", "kl-exact", VARIANCE], progress=True,
            out=args.keep and f"{args.keep}/{data}",
        )
        for data in DATA
    }  # fmt: skip
    w2s, more, kl = (
        {data: values(cells, figure, typed(data)) for data, cells in studies.items()}
        for figure in ("w2-exact", "variance", "kl-exact")
    )
    for data in DATA:
        errors(console, data, w2s[data])
    variances(console, more)
    divergences(console, kl)
    equal_steps(console, w2s)
    grids(console)
    priors(console)
    orders(console, w2s)
    misleading(console)
    picture(studies, args.out)
    console.print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    main()
