"""Few steps by training: losses of flow maps against exact maps, and the shipped maps beside samplers of their teachers.

    OMP_NUM_THREADS=1 python benchmarks/flow_maps.py losses                          # a mixture in the plane, 15 minutes
    OMP_NUM_THREADS=1 python benchmarks/flow_maps.py straight                        # before and after reflow
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


KINDS = {FLOW: "flow", VP: "v"}


def first_trained(seed, path, prediction, x):
    """A velocity network on data, which every loss begins with."""
    torch.manual_seed(seed)
    model = sf.ScoreModel(sf.nets.MLP(2, width=64, depth=3, time_scale=5.0), path, prediction)
    return train(model, x, Objective(weighting=None), Recipe(steps=500, batch=256, rate=3e-3, seed=seed)).net


def losses(args):
    x, judges = DATA.sample(65_536, seed=1).float(), {path: Judge(path) for path in (FLOW, VP)}
    floor = float(squared_energy(DATA.sample(2000, seed=7), judges[FLOW].data))
    print(f"Energy distance of 2000 data to 2000 others: {floor:.4f}. Median distance to the exact map, then energy distance.")
    head("loss", "of", *[f"{k} step{'s' * (k > 1)}" for k in STEPS], *[f"energy, {k}" for k in STEPS], "time")
    row("Euler, exact velocity", "", [judges[FLOW](DATA.model(FLOW), "pf-ode")])
    begun = time.perf_counter()
    start = {seed: {p: first_trained(seed, p, kind, x) for p, kind in KINDS.items()} for seed in range(args.seeds)}
    spent = (time.perf_counter() - begun) / args.seeds / 2
    plain = [judges[FLOW](sf.FlowMap(sf.nets.two_times(start[s][FLOW]), FLOW, "flow"), "flow-map") for s in start]
    row("flow matching, Euler", "data", plain)
    for loss, of, learn in methods(args.steps):
        path = VP if loss == "scm" else FLOW
        begun = time.perf_counter()
        maps = [learn(seed, sf.nets.two_times(start[seed][path]), x) for seed in start]
        seconds = (time.perf_counter() - begun) / args.seeds
        one_time = loss in MAP_LOSSES and MAP_LOSSES[loss].one_time
        sampler = "consistency" if one_time else "flow-map"
        row(loss, of, [judges[path](found, sampler) for found in maps], seconds / spent, one_time)


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("losses")
    one.add_argument("--steps", type=int, default=1000)
    one.add_argument("--seeds", type=int, default=3)
    one.set_defaults(run=losses)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
