"""Few steps by training: losses of flow maps against exact maps, and the shipped maps beside samplers of their teachers.

    OMP_NUM_THREADS=1 python benchmarks/flow_maps.py losses                          # a mixture in the plane, 15 minutes
    OMP_NUM_THREADS=1 python benchmarks/flow_maps.py straight                        # before and after reflow
    OMP_NUM_THREADS=1 python benchmarks/flow_maps.py chart                           # one study, a chart
    OMP_NUM_THREADS=1 python benchmarks/flow_maps.py digits --out docs/digits-map.png
    OMP_NUM_THREADS=1 python benchmarks/flow_maps.py mnist --out docs/mnist-map.png

Tables are printed as docs/flow_maps.md has them.
"""

import argparse
import copy
import tempfile
import time

import torch

import scoreflow as sf
from scoreflow.studies import load
from scoreflow.studies.metrics import squared_energy
from scoreflow.training import MAP_LOSSES, MapObjective, Objective, Recipe, pairs, train

STEPS = (1, 2, 4, 8)
FLOW, VP = sf.Flow(), sf.VPSDE()


def line(*cells):
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def head(*cells):
    line(*cells)
    line(*(["---"] + ["---:"] * (len(cells) - 1)))


# -- a mixture in the plane ------------------------------------------------------------------------------------------------


def plane():
    """Four modes of unlike weights, a turned product of two mixtures on a line: its flow map is known."""
    angle = torch.tensor(0.5, dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    first = sf.GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-1.0], [0.8]]), 0.1)
    return sf.ProductMixture([first, sf.GaussianMixture(torch.ones(2) / 2, torch.tensor([[-0.5], [1.2]]), 0.05)], turn)


DATA = plane()


class Judge:
    """Median distance of where 2000 states come to where they should, and the energy distance to data, at every step count."""

    def __init__(self, path):
        self.x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * path.prior_std(1.0)
        self.exact = DATA.flow_map(path).jump(self.x, 1.0, 0.0)
        self.data = DATA.sample(2000, seed=6)

    def __call__(self, model, sampler):
        found = []
        for steps in STEPS:
            x = sf.solve(model, self.x.to(model.state_dtype), sampler, steps=steps, seed=0).x.double()
            found += [float((x - self.exact).norm(dim=1).median()), float(squared_energy(x, self.data))]
        return found


KINDS, FIRST = {FLOW: "flow", VP: "v"}, 500


def first_trained(seed, path, prediction, x):
    """A velocity network on data, which every loss begins with."""
    torch.manual_seed(seed)
    model = sf.ScoreModel(sf.nets.MLP(2, width=64, depth=3, time_scale=5.0), path, prediction)
    return train(model, x, Objective(weighting=None), Recipe(steps=FIRST, batch=256, rate=3e-3, seed=seed)).net


def losses(args):
    x, judges = DATA.sample(65_536, seed=1).float(), {path: Judge(path) for path in (FLOW, VP)}
    floor = float(squared_energy(DATA.sample(2000, seed=7), judges[FLOW].data))
    print(f"Energy distance of 2000 data to 2000 others: {floor:.4f}. Median distance to the exact map, then energy distance.")
    head("loss", "of", *[f"{k} step{'s' * (k > 1)}" for k in STEPS], *[f"energy, {k}" for k in STEPS], "time")
    row("Euler, exact velocity", "", [judges[FLOW](DATA.model(FLOW), "pf-ode")])
    begun = time.perf_counter()
    start = {seed: {p: first_trained(seed, p, kind, x) for p, kind in KINDS.items()} for seed in range(args.seeds)}
    spent = (time.perf_counter() - begun) / args.seeds / 2 / FIRST
    plain = [judges[FLOW](sf.FlowMap(sf.nets.two_times(start[s][FLOW]), FLOW, "flow"), "flow-map") for s in start]
    row("flow matching, Euler", "data", plain)
    for loss, of, learn in methods(args.steps):
        path = VP if loss == "scm" else FLOW
        begun = time.perf_counter()
        maps = [learn(seed, sf.nets.two_times(start[seed][path]), x) for seed in start]
        seconds = (time.perf_counter() - begun) / args.seeds
        one_time = loss in MAP_LOSSES and MAP_LOSSES[loss].one_time
        sampler = "consistency" if one_time else "flow-map"
        row(loss, of, [judges[path](found, sampler) for found in maps], seconds / args.steps / spent, one_time)


def methods(steps):
    """Loss, what it learns from, and how: from a seed, a network and the data to a map."""
    for loss, kind in MAP_LOSSES.items():
        path = VP if loss == "scm" else FLOW
        for of in ("data", "teacher"):
            if kind.teacher == {"data": "required", "teacher": "none"}[of]:
                continue
            teacher = None if of == "data" else DATA.flow_map(path) if loss == "regression" else DATA.model(path)
            if loss == "progressive-distillation":
                yield loss, of, lambda seed, net, x, teacher=teacher: distilled(net, teacher, x, steps, seed)
            else:
                objective = MapObjective(loss=loss, teacher=teacher, stage=steps // 6, warmup=steps // 2)
                yield loss, of, lambda seed, net, x, o=objective: learned(net, o, x, steps, seed)
    yield "reflow, Euler", "pairs", lambda seed, net, x: reflowed(net, steps, seed)


def learned(net, objective, x, steps, seed):
    """By one loss from the start to the end."""
    path = VP if objective.loss == "scm" else FLOW
    rate = 1e-3 if objective.loss == "scm" else 3e-3
    return train(sf.FlowMap(net, path, KINDS[path]), x, objective, Recipe(steps=steps, batch=256, rate=rate, seed=seed))


def reflowed(net, steps, seed):
    """A velocity on pairs that the exact ODE makes."""
    model = sf.FlowMap(net, FLOW, "flow")
    with tempfile.TemporaryDirectory() as folder:
        made = pairs(DATA.model(FLOW), (2,), 16_384, folder, "unipc", nfe=40, seed=seed, batch=4096, dtype=torch.float64)
        states = [made[i] for i in range(len(made))]
    x_0, eps = (torch.stack([state[0] if k == 0 else state[1]["eps"] for state in states]).float() for k in range(2))
    data = [(a, {"eps": e}) for a, e in zip(x_0, eps, strict=True)]
    return train(model, data, Objective(weighting=None, pairs=True), Recipe(steps=steps, batch=256, rate=3e-3, seed=seed))


def distilled(net, teacher, x, steps, seed):
    """Progressive distillation: a grid of 16 steps, then of 8, 4, 2 and 1, each learned from the one before."""
    model = sf.FlowMap(net, FLOW, "flow")
    for grid in (16, 8, 4, 2, 1):
        objective = MapObjective(loss="progressive-distillation", teacher=teacher, steps=grid)
        found = train(model, x, objective, Recipe(steps=steps // 5, batch=256, rate=3e-3, seed=seed))
        model, teacher = copy.deepcopy(found), found
    return found


def row(loss, of, figures, spent=None, one_time=False):
    """Means over the seeds, with their standard deviation; the way of a map with noise between has no end to be compared to."""
    each = torch.tensor(figures, dtype=torch.float64)
    far = each[:, ::2][:, : 1 if one_time else len(STEPS)]
    spread = far.std(0).tolist() if len(each) > 1 else []
    cells = [f"{mean:.3f}" + (f" ± {spread[k]:.3f}" if spread else "") for k, mean in enumerate(far.mean(0).tolist())]
    cells += ["–"] * (len(STEPS) - len(cells))
    energy = [f"{value:.4f}" for value in each.mean(0)[1::2].tolist()]
    line(loss, of, *cells, *energy, "" if spent is None else f"{spent:.1f}")


# -- straightness ----------------------------------------------------------------------------------------------------------


def straight(args):
    """Relative straightness of ODEs, and how far one step of Euler leads from where they end."""
    x = torch.randn(512, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    exact = DATA.flow_map(FLOW).jump(x, 1.0, 0.0)
    data = DATA.sample(65_536, seed=1).float()

    def told(name, model):
        found = sf.analysis.straightness(model, x.to(model.state_dtype))
        end = sf.solve(model, x.to(model.state_dtype), "pf-ode", steps=1).x.double()
        far = f"{float((end - exact).norm(dim=1).median()):.3f}"
        line(name, f"{found.value:.4f} ± {found.error:.4f}", f"{found.relative:.4f} ± {found.relative_error:.4f}", far)

    head("velocity", "S", "S, relative", "one step of Euler")
    told("exact", DATA.model(FLOW))
    net = first_trained(0, FLOW, "flow", data)
    told("a network, flow matching", sf.ScoreModel(net, FLOW, "flow"))
    told("the same network, reflow", reflowed(sf.nets.two_times(net), args.steps, 0).score_model())
    for std in (0.5, 0.1):
        found = sf.analysis.straightness(sf.Gaussian(torch.zeros(2), std**2).model(FLOW), x)
        line(f"exact, of N(0, {std:g}² I)", f"{found.value:.4f} ± {found.error:.4f}", f"{found.relative:.4f}", "")


# -- the shipped maps ------------------------------------------------------------------------------------------------------


def shipped(args):
    """The maps of the zoo beside samplers of their teachers: a table without guidance, one at scale 2, and a picture."""
    name, n = args.name, 250
    zoo, jumps = getattr(sf.zoo, name)(), getattr(sf.zoo, f"{name}_map")()
    judge, subject = getattr(sf.zoo, f"{name}_classifier")(), load(f"zoo:{name}")

    def classes(count, seed):
        return torch.arange(count) % 10

    @sf.metric("accuracy", better="higher", needs=("data",), positive=False)
    def accuracy(inputs):
        """Share of the samples in which a classifier sees the class that was asked for.

        Floor:
            None: the data of a block have other classes.
        """
        with torch.no_grad():
            return float((judge(inputs.x.float()).argmax(1) == classes(len(inputs.x), 0)).float().mean())

    metrics = ["trajectory", "accuracy", "frechet", "w2"]
    for scale in (1.0, 2.0):
        teacher = zoo if scale == 1 else sf.ClassifierFree(zoo, scale)
        of = sf.Subject(
            teacher, subject.shape, subject.data, subject.features, {"y": classes}, flow_map=jumps.fixing(scale=scale)
        )
        with tempfile.TemporaryDirectory() as out:
            keywords = dict(metrics=metrics, n=n, seeds=args.seeds, out=out)
            branches = 1 if scale == 1 else 2
            sf.study(of, ["flow-map", "consistency"], nfe=STEPS, **keywords)
            found = sf.study(of, ["ddim", "dpm-solver++", "auto"], nfe=[branches * k for k in (1, 2, 5, 10, 50)], **keywords)
        floors = ", ".join(f"{figure} {found.floor(figure).value:.3g}" for figure in ("frechet", "w2"))
        print(f"\nScale {scale:g}; of data against data: {floors}.\n")
        head("", "evaluations", "to the ODE, RMS", "class asked for", "Fréchet", "W2")
        for spec, nfe in sorted(found.specs.items(), key=lambda item: (found.labels.index(item[0].label), item[1])):
            far = found.mean(spec, "trajectory/rms") if found.blocks(spec, "trajectory/rms") else None
            mean = {figure: found.mean(spec, figure).value for figure in ("accuracy", "frechet", "w2")}
            line(
                spec.label, f"{nfe:g}", "–" if far is None else f"{far.value:.3f}", f"{mean['accuracy']:.1%}",
                f"{mean['frechet']:.3g}", f"{mean['w2']:.3f}",
            )  # fmt: skip
        ode = {figure: found.reference(figure).value for figure in ("accuracy", "frechet", "w2")}
        line("the ODE", "", "0", f"{ode['accuracy']:.1%}", f"{ode['frechet']:.3g}", f"{ode['w2']:.3f}")
        for figure in ("trajectory/median", "frechet"):
            print("\n".join(text for text in found.findings(figure) if "worse at" in text))
    if args.out:
        drawn(args.out, zoo, jumps, subject.shape)


def chart(args):
    """The map of the digits and samplers of its teacher in one study: its findings, and a chart."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = sf.study(
        "zoo:digits", ["flow-map", "consistency", "ddim", "dpm-solver++", "auto"], nfe=[1, 2, 4, 8], n=128, seeds=6,
        flow_map="zoo:digits-map", metrics=["trajectory", "frechet"], reference="dpm-solver++",
    )  # fmt: skip
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, ax in zip(("trajectory/median", "frechet"), axes, strict=True):
        found.plot(name, ax)
        print(name, *found.findings(name), sep="\n- ")
    figure.savefig(args.out, dpi=110)
    print(f"picture: {args.out}")


def drawn(file, zoo, jumps, shape):
    """Digits from the same seeds: one, two and four jumps, and the teacher at 10 and 50 steps; by scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    y, columns = torch.arange(10), {}
    for scale in (1.0, 3.0):
        teacher = zoo if scale == 1 else sf.ClassifierFree(zoo, scale)
        for steps in (1, 2, 4):
            x = sf.sample(jumps, (10, *shape), steps=steps, seed=range(10), y=y, scale=scale)
            columns[f"map\n{steps} step{'s' * (steps > 1)}\nscale {scale:g}"] = x
        for steps in (2, 10, 50):
            x = sf.sample(teacher, (10, *shape), "dpm-solver++", steps=steps, seed=range(10), y=y)
            columns[f"teacher\n{steps} steps\nscale {scale:g}"] = x
    figure, axes = plt.subplots(1, len(columns), figsize=(9, 8.2), layout="constrained")
    for ax, (name, x) in zip(axes, columns.items(), strict=True):
        apart = torch.nn.functional.pad(x[:, 0].clamp(-1, 1), (0, 0, 1, 1), value=-0.7)  # a grey line between
        ax.imshow(apart.flatten(0, 1), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
        ax.set_title(name, fontsize=6.5)
        ax.axis("off")
    figure.savefig(file, dpi=100)
    print(f"picture: {file}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("losses", losses), ("straight", straight)):
        one = commands.add_parser(name)
        one.add_argument("--steps", type=int, default=1000, help="of training")
        one.set_defaults(run=run)
        if run is losses:
            one.add_argument("--seeds", type=int, default=3)
    one = commands.add_parser("chart")
    one.add_argument("--out", default="docs/flow-maps-study.png")
    one.set_defaults(run=chart)
    for name, seeds in (("digits", 4), ("mnist", 2)):
        one = commands.add_parser(name)
        one.add_argument("--seeds", type=int, default=seeds, help="blocks of 250")
        one.add_argument("--out", help="a picture")
        one.set_defaults(run=shipped, name=name)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
