"""Which conditional samplers are right: posterior methods against exact answers, and on the shipped networks.

    OMP_NUM_THREADS=1 python benchmarks/posterior.py laws         # one Gaussian, no sampling
    OMP_NUM_THREADS=1 python benchmarks/posterior.py modes        # a mixture: weights of its modes
    OMP_NUM_THREADS=1 python benchmarks/posterior.py calibration  # ranks and coverage of simulated truths
    OMP_NUM_THREADS=1 python benchmarks/posterior.py evidence     # log p(y) of sequential Monte Carlo
    OMP_NUM_THREADS=1 python benchmarks/posterior.py covariance   # what a network says of the variance of x_0
    OMP_NUM_THREADS=1 python benchmarks/posterior.py digits       # halves and small ones of held-out 8×8 digits
    OMP_NUM_THREADS=1 python benchmarks/posterior.py mnist --out docs/inpainted.png

Tables are printed as docs/posterior.md has them.
"""

import argparse
import math
from pathlib import Path

import torch

import scoreflow as sf
from scoreflow.posterior.denoised import Denoised
from scoreflow.studies.stats import interval

PATH = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
NOISE = 0.05
D = 8


def numbers(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line(*cells):
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def head(*cells):
    line(*cells)
    line(*(["---"] + ["---:"] * (len(cells) - 1)))


# -- one Gaussian ----------------------------------------------------------------------------------------------------------


def gaussian():
    root = numbers(D, D, seed=0)
    return sf.Gaussian(numbers(D, seed=1), root @ root.mT / D + 0.02 * torch.eye(D, dtype=torch.float64))


def measured(data):
    """Half of the entries, four random numbers, a blur of all; of one draw of the data."""
    x = data.sample(1, seed=7)[0]
    at = torch.arange(D, dtype=torch.float64)
    far = (at[:, None] - at).abs()
    blur = torch.exp(-0.5 * torch.minimum(far, D - far) ** 2)
    maps = {
        "inpainting": torch.arange(D) % 2 == 0,
        "random A": numbers(4, D, seed=3) / math.sqrt(D),
        "blur": blur / blur.sum(1, keepdim=True),
    }
    found = {}
    for k, (name, A) in enumerate(maps.items()):
        clean = x[A] if A.dtype == torch.bool else A @ x
        found[name] = sf.Observation(A, clean + NOISE * numbers(len(clean), seed=10 + k), NOISE)
    return found


def runs(data):
    """Method, sampler, options: as they are, and as published where that is another noise."""
    cps = sf.get_sampler("cps", a=2 / math.pi * math.asin(0.85))
    return {
        "exact": (None, "ddpm", {}),
        "mmps": ("mmps", "ddpm", {"iterations": None, "rtol": 1e-12}),
        "jfps, Σ_x of the data": ("jfps", "ddpm", {"cov": data.cov}),
        "tmpd": ("tmpd", "ddpm", {}),
        "pigdm": ("pigdm", "ddpm", {}),
        "jfps, Σ_x = I": ("jfps", "ddpm", {}),
        "diffpir": ("diffpir", "ddpm", {}),
        "diffpir, η = 0.85": ("diffpir", cps, {}),
        "ddnm": ("ddnm", "ddpm", {}),
        "ddnm, η = 0.85": ("ddnm", cps, {}),
        "ddrm": ("ddrm", "ddim", {}),
        "replacement": ("replacement", "ddpm", {}),
        "repaint, 10 times": ("replacement", sf.get_sampler("repaint", resamplings=10), {}),
        "dps, ζ = 0.1 (sampled)": ("dps", "ddpm", {"scale": 0.1}),
        "dps, ζ = 1 (sampled)": ("dps", "ddpm", {"scale": 1.0}),
        "mcg, ζ = 0.1 (sampled)": ("mcg", "ddpm", {"scale": 0.1}),
    }


def w2(data, seen, method, sampler, options, steps):
    """To the exact posterior, RMS an entry; of the law, or of 4000 samples by their mean and covariance."""
    if method is None:
        return sf.analysis.law(sampler, PATH, data.posterior(seen), steps).w2 / math.sqrt(D)
    exact = {} if method in ("tmpd", "dps", "ddrm") else {"rtol": 1e-12}  # systems solved to rounding
    model = sf.Posterior(data.model(PATH), seen, method, **{**options, **exact})
    if method not in ("dps", "mcg"):
        return sf.analysis.law(sampler, PATH, model, steps).w2 / math.sqrt(D)
    x = sf.sample(model, (4000, D), sampler, steps=steps, seed=0, dtype=torch.float64)
    if not bool(x.isfinite().all()):
        return math.inf
    return sf.analysis.Law(x.mean(0), x.mT.cov(), data.posterior(seen)).w2 / math.sqrt(D)


def laws(steps=(10, 100, 1000)):
    data = gaussian()
    problems = measured(data)
    head("W₂ to the posterior, an entry", *(f"{name}, {n}" for name in problems for n in steps))
    prior = [sf.analysis.Law(data.mean, data.cov, data.posterior(seen)).w2 / math.sqrt(D) for seen in problems.values()]
    line("the prior", *(f"{one:.2g}" for one in prior for _ in steps))
    for name, (method, sampler, options) in runs(data).items():
        many = [10, 100] if "repaint" in name else steps
        cells = [
            f"{w2(data, seen, method, sampler, options, n):.2g}" if n in many else "–"
            for seen in problems.values()
            for n in steps
        ]
        line(name, *cells)


# -- a mixture ---------------------------------------------------------------------------------------------------------------


def mixture():
    """Five modes in the plane, of which a measurement of the sum of both numbers leaves three."""
    means = torch.tensor([[-1.5, 1.0], [0.0, -0.5], [0.9, -1.2], [1.6, 1.0], [-0.6, -1.4]], dtype=torch.float64)
    covs = torch.tensor([[0.06, 0.02], [0.02, 0.12]], dtype=torch.float64)
    return sf.GaussianMixture(torch.tensor([0.25, 0.2, 0.15, 0.25, 0.15], dtype=torch.float64), means, covs.expand(5, 2, 2))


def modes(blocks=16, n=500, steps=200):
    data = mixture()
    seen = sf.Observation(torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([-0.4], dtype=torch.float64), 0.2)
    truth = data.posterior(seen)
    print(f"weights of the modes given y: {', '.join(f'{w:.3f}' for w in truth.weights.tolist())}\n")
    head("method", *(f"mode {k + 1}" for k in range(len(truth.weights))), "total variation", "evaluations", "backward")

    def told(name, shares, nfe, backward):
        shares = torch.stack(shares)
        off = [float((one - truth.weights).abs().sum() / 2) for one in shares]
        found = interval(off)
        cells = [f"{float(one):.3f}" for one in shares.mean(0)]
        line(name, *cells, f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})", nfe, backward)

    def share(x, weights=None):
        mode = truth.mode(x)
        return torch.bincount(mode, weights=weights, minlength=len(truth.weights)).double() / (len(x) if weights is None else 1)

    told("exact draws", [share(truth.sample(n, seed=100 + seed)) for seed in range(blocks)], "–", "–")
    exact = [sf.sample(truth.model(PATH), (n, 2), "ddpm", steps=steps, seed=s, dtype=torch.float64) for s in range(blocks)]
    told("its own model", [share(x) for x in exact], steps, 0)
    for name, (method, sampler, options) in runs(data_cov(data)).items():
        if method is None:
            continue
        model, shares = sf.Posterior(data.model(PATH), seen, method, **options), []
        for seed in range(blocks):
            x_T = sf.White(seed).normal(torch.empty(n, 2, dtype=torch.float64))
            sol = sf.solve(model, x_T, sampler, steps=steps // (10 if "repaint" in name else 1), seed=seed)
            shares.append(share(sol.x))
        told(name.replace(" (sampled)", ""), shares, sol.nfe, sol.backward)
    for twist, options in (("mmps", {}), ("pigdm", {}), ("diffpir", {})):
        found = sf.smc(
            data.model(PATH), seen, (blocks, 2), n, steps=steps, seed=0, twist=twist, twist_options=options, dtype=torch.float64
        )
        shares = [share(x, w) for x, w in zip(found.x, found.weights, strict=True)]
        told(f"smc, twist {twist}", shares, found.nfe, found.backward)


def data_cov(data):
    """With the covariance of the data, for `jfps`."""
    mean = (data.weights[:, None] * data.means.flatten(1)).sum(0)
    off = data.means.flatten(1) - mean
    return sf.Gaussian(mean, (data.weights[:, None, None] * (data.covs + off[:, :, None] * off[:, None])).sum(0))


def calibration(truths=256, each=15, blocks=4, steps=1000):
    """Simulated truths, `each` samples given what is measured of each: ranks, coverage, W₂; on the Gaussian and the mixture."""
    one, two = gaussian(), mixture()
    plane = sf.Observation(torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([-0.4], dtype=torch.float64), 0.2)
    names = "mmps", "tmpd", "pigdm", "jfps, Σ_x of the data", "jfps, Σ_x = I", "diffpir", "replacement", "dps, ζ = 1 (sampled)"
    metrics = ["sbc", "tarp", "coverage", "posterior-w2"]
    for title, data, seen in (("one Gaussian, random A", one, measured(one)["random A"]), ("the mixture", two, plane)):
        print(f"\n{title}\n")
        head("method", "blocks with sbc p < 0.05", "tarp distance", "coverage at 50, 80, 95 %", "W₂ to the posterior, an entry")
        methods = runs(data_cov(data) if data is two else data)
        for name in names:
            method, sampler, options = methods[name]
            model = sf.Posterior(data.model(PATH), seen, method, **options)
            study = sf.study(
                model, sampler, steps=steps, n=truths * each, seeds=blocks, simulated=each, metrics=metrics, reference="ddim"
            )
            (spec,) = study.specs
            p = list(study.blocks(spec, "sbc/p").values())
            covered = {kind: [] for kind in ("mean", "floor")}
            for level in (50, 80, 95):
                for kind, found in covered.items():
                    found.append(f"{getattr(study, kind)(*((spec,) if kind == 'mean' else ()), f'coverage/{level}').value:.2f}")
            if name == "mmps":
                w, far = study.floor("posterior-w2"), study.floor("tarp/distance")
                line("exact draws", "0.05 by chance", f"{far.value:.3f}", ", ".join(covered["floor"]), f"{w.value:.2f}")
            w, far = study.mean(spec, "posterior-w2"), study.mean(spec, "tarp/distance")
            line(
                name.replace(" (sampled)", ""), f"{sum(q < 0.05 for q in p)} of {len(p)}",
                f"{far.value:.3f} ({far.low:.3f} to {far.high:.3f})", ", ".join(covered["mean"]),
                f"{w.value:.2f} ({w.low:.2f} to {w.high:.2f})",
            )  # fmt: skip


# -- the evidence ------------------------------------------------------------------------------------------------------------


def evidence(groups=400, particles=64):
    data = gaussian()
    seen = measured(data)["inpainting"]
    exact = data.evidence(seen)
    print(f"log p(y) = {exact:.4f}\n")
    head("steps", "p(y) of the steps over the data's", "that of smc over the steps'", "spread of log Ẑ", "its stated error")
    for n in (25, 50, 100, 200):
        law = sf.analysis.law("ddpm", PATH, data, n, grid="logsnr")
        of_steps = sf.Gaussian(law.mean, (law.cov + law.cov.mT) / 2).evidence(seen)
        found = sf.smc(data.model(PATH), seen, (groups, D), particles, steps=n, grid="logsnr", seed=0, dtype=torch.float64)
        ratio = (found.log_evidence - of_steps).exp()
        error = found.log_evidence_error.square().mean().sqrt()
        line(
            n, f"{math.exp(of_steps - exact):.3f}", f"{ratio.mean():.3f} ± {1.96 * ratio.std() / math.sqrt(groups):.3f}",
            f"{found.log_evidence.std():.3f}", f"{error:.3f}",
        )  # fmt: skip


# -- digits ------------------------------------------------------------------------------------------------------------------


def score(x, truth, hidden):
    """Energy score of the hidden pixels, `E|X − x*| − ½ E|X − X'|`, lower is better, and its samples' standard deviation."""
    x, truth = x[..., hidden].flatten(2), truth[:, hidden].flatten(1)
    k = x.shape[1]
    within = torch.cdist(x, x).sum((1, 2)) / (k * (k - 1))
    return (x - truth[:, None]).norm(dim=2).mean(1) - within / 2


def covariance(n=32):
    """Eigenvalues of the symmetric part of C of the digits network, of the upper half of noisy digits; medians."""
    model, data = sf.zoo.digits(), sf.zoo.digits_data()
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    seen, generator = sf.Observation(mask, data.held_out[:1], 0.02), torch.Generator().manual_seed(0)
    head("t", "κ", "least", "largest", "asymmetry")
    for t in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02):
        noise = torch.randn(n, 1, 8, 8, generator=generator)
        x = model.path.q_sample(data.held_out[:n], t, noise)
        at = Denoised(model, x, t, {}, True)
        C = torch.stack([seen.measure(at.cov(seen.adjoint(one.expand(n, -1), x))) for one in torch.eye(32)], -1)
        values = torch.linalg.eigvalsh((C + C.mT) / 2)
        off = ((C - C.mT).norm(dim=(1, 2)) / C.norm(dim=(1, 2))).median()
        line(t, f"{model.path.kappa(t):.3g}", f"{values[:, 0].median():.2g}", f"{values[:, -1].median():.2g}", f"{off:.2f}")
    upper = data.train[:, 0, :4].flatten(1)
    print(f"the data's own: {torch.linalg.eigvalsh(upper.mT.cov())[-1]:.2f} at most")


def digits(n=100, k=4):
    data, classifier = sf.zoo.digits_data(), sf.zoo.digits_classifier()
    truth, label = data.held_out[:n], data.held_out_labels[:n]
    every = truth.repeat_interleave(k, 0)
    small = sf.posterior.downsample(2)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    whole = torch.ones(1, 8, 8, dtype=torch.bool)
    model, empirical = sf.zoo.digits(), sf.Empirical(data.train.double())

    def told(name, x, hidden, y, passes="–"):
        x = x.reshape(n, k, 1, 8, 8).float()
        off = (y(x.flatten(0, 1)) - y(every)).square().mean().sqrt()
        right = (classifier(x.flatten(0, 1)).argmax(1).reshape(n, k) == label[:, None]).double().mean(1)
        energy, known = interval(score(x, truth, hidden).tolist()), interval(right.tolist())
        seam = (x[..., 4, :] - x[..., 3, :]).square().mean().sqrt()
        line(
            name, f"{energy.value:.2f} ({energy.low:.2f} to {energy.high:.2f})",
            f"{known.value:.2f} ({known.low:.2f} to {known.high:.2f})", f"{off:.3f}", f"{seam:.2f}", passes,
        )  # fmt: skip

    tasks = {
        "the lower half": (mask, lambda x: x[..., :4, :], sf.Observation(~mask, every, 0.02)),
        "4×4 to 8×8": (whole, small, sf.Observation(small, small(every), 0.02)),
    }
    for title, (hidden, y, seen) in tasks.items():
        print(f"\n{title}\n")
        head(
            "method", "energy score", "classifier right", "off the measured", "step between rows 4 and 5", "forward + backward"
        )
        told("the digits themselves", every, hidden, y)
        for noise in (0.1, 0.3):
            one = [sf.Observation(seen.A, (y(t[None])[0] if seen.mask is None else t).double(), noise) for t in truth]
            told(f"data set, σ_y = {noise}", torch.cat([empirical.posterior(o).sample(k, seed=i) for i, o in enumerate(one)]),
                 hidden, y)  # fmt: skip
        told("the network without y", sf.sample(model, (n * k, 1, 8, 8), "ddpm", steps=50, seed=0), hidden, y, "50 + 0")
        for name, method, sampler, options, budget in [
            ("mmps", "mmps", "ddpm", {}, {"steps": 50}),
            ("mmps, 2 iterations", "mmps", "ddpm", {"iterations": 2}, {"steps": 50}),
            ("mmps, 25 steps", "mmps", "ddpm", {}, {"steps": 25}),
            ("mmps, sde-dpm-solver++", "mmps", "sde-dpm-solver++", {}, {"steps": 25}),
            ("mmps, dpm-solver++-2m", "mmps", "dpm-solver++-2m", {}, {"steps": 25}),
            ("mmps, kappa_max = ∞", "mmps", "ddpm", {"kappa_max": math.inf}, {"steps": 50}),
            ("tmpd", "tmpd", "ddpm", {}, {"steps": 50}),
            ("pigdm, v = 1", "pigdm", "ddpm", {}, {"steps": 50}),
            ("pigdm, v = 0.4", "pigdm", "ddpm", {"v": 0.4}, {"steps": 50}),
            ("pigdm, v = 0.2", "pigdm", "ddpm", {"v": 0.2}, {"steps": 50}),
            ("jfps", "jfps", "ddpm", {}, {"steps": 100}),
            ("diffpir", "diffpir", "ddpm", {}, {"steps": 100}),
            ("ddnm", "ddnm", "ddpm", {}, {"steps": 100}),
            ("ddrm", "ddrm", "ddim", {}, {"steps": 100}),
            ("dps, ζ = 1", "dps", "ddpm", {"scale": 1.0}, {"steps": 100}),
            ("dps, ζ = 0.3", "dps", "ddpm", {"scale": 0.3}, {"steps": 100}),
            ("replacement", "replacement", "ddpm", {}, {"steps": 100}),
            ("repaint, 10 times", "replacement", sf.get_sampler("repaint"), {}, {"nfe": 200}),
        ]:
            x_T = sf.White(0).normal(every)
            sol = sf.solve(sf.Posterior(model, seen, method, **options), x_T, sampler, seed=0, **budget)
            told(name, sol.x, hidden, y, f"{sol.nfe} + {sol.backward}")


def mnist(out, n=8, steps=25):
    """Rows: truth, measurement, two samples, mean and standard deviation of 8; halves, a hole, 7×7 to 28×28, a border."""
    from PIL import Image

    from scoreflow._show.picture import sheet

    data, model, classifier = sf.data.mnist().held_out, sf.zoo.mnist(), sf.zoo.mnist_classifier()
    truth, label = data.x[:n], data.y[:n]
    k = 8
    every, labels = truth.repeat_interleave(k, 0), label.repeat_interleave(k)
    half, hole = torch.zeros(1, 28, 28), torch.zeros(1, 28, 28)
    half[:, 14:] = 1.0
    hole[:, 7:21, 7:21] = 1.0
    small = sf.posterior.downsample(4)
    pages = []
    for name, run, shown in [
        ("the lower half", lambda: sf.inpaint(model, every, half, steps=steps, seed=0), truth * (1 - half)),
        ("the middle", lambda: sf.inpaint(model, every, hole, steps=steps, seed=0), truth * (1 - hole)),
        ("7×7 to 28×28", lambda: sf.super_resolution(model, small(every), 4, steps=steps, seed=0),
         small(truth).repeat_interleave(4, -1).repeat_interleave(4, -2)),
        ("a border of 7", lambda: sf.outpaint(model, every[..., 7:21, 7:21], (7, 7, 7, 7), steps=steps, seed=0),
         truth * hole),
    ]:  # fmt: skip
        sol = run()
        x = sol.x.reshape(n, k, 1, 28, 28)
        right = (classifier(sol.x).argmax(1) == labels).double().reshape(n, k).mean(1)
        print(f"{name}: {sol.nfe} + {sol.backward} passes, classifier right {float(right.mean()):.2f}", flush=True)
        rows = torch.stack([truth, shown, x[:, 0], x[:, 1], x.mean(1), 2 * x.std(1) - 1])
        pages.append(sheet(rows.flatten(0, 1).numpy(), (-1, 1), n, 1))
    width, height = pages[0].size
    page = Image.new("L", (2 * width + 12, 2 * height + 12), 255)
    for i, one in enumerate(pages):
        page.paste(one.convert("L"), ((i % 2) * (width + 12), (i // 2) * (height + 12)))
    page.resize((2 * page.width, 2 * page.height), Image.Resampling.NEAREST).save(out, optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("laws", "modes", "calibration", "evidence", "covariance", "digits", "mnist"))
    parser.add_argument("--out", type=Path, default=Path("inpainted.png"))
    asked = parser.parse_args()
    mnist(asked.out) if asked.what == "mnist" else globals()[asked.what]()
