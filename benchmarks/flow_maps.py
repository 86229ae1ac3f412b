"""Few steps by training: losses of flow maps against exact maps, and the shipped maps beside samplers of their teachers.

    OMP_NUM_THREADS=1 python benchmarks/flow_maps.py losses                          # a mixture in the plane, 15 minutes
    OMP_NUM_THREADS=1 python benchmarks/flow_maps.py straight                        # before and after reflow
    OMP_NUM_THREADS=1 python benchmarks/flow_maps.py digits --out docs/digits-map.png
    OMP_NUM_THREADS=1 python benchmarks/flow_maps.py mnist --out docs/mnist-map.png

Tables are printed as docs/flow_maps.md has them.
"""

import argparse
import copy
import time

import torch

import scoreflow as sf
from scoreflow.studies.metrics import squared_energy
from scoreflow.training import MAP_LOSSES, MapObjective, Objective, Recipe, train

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


def network(seed, times):
    torch.manual_seed(seed)
    return sf.nets.MLP(2, width=64, depth=3, times=times, time_scale=5.0)


def first_trained(seed, path, prediction, x, times):
    """A network of the velocity, which every loss begins with."""
    model = sf.ScoreModel(network(seed, 1), path, prediction)
    found = train(model, x, Objective(weighting=None), Recipe(steps=500, batch=256, rate=3e-3, seed=seed))
    return sf.nets.two_times(found.net) if times == 2 else found.net


def losses(args):
    x = DATA.sample(65_536, seed=1).float()
    print(f"Floors: energy distance of 2000 data to 2000 {float(squared_energy(DATA.sample(2000, seed=7), Judge(FLOW).data)):.4f}.")
    head("loss", "from", *[f"{k} step{'s' * (k > 1)}" for k in STEPS], *[f"energy, {k}" for k in STEPS], "seconds")
    judges = {path: Judge(path) for path in (FLOW, VP)}
    table("Euler, exact velocity", "", [judges[FLOW](DATA.model(FLOW), "pf-ode")], 0.0)
    for loss, kind in MAP_LOSSES.items():
        for name in ("data", "teacher"):
            if (name == "data" and kind.teacher == "required") or (name == "teacher" and kind.teacher == "none"):
                continue
            figures, begun = [], time.perf_counter()
            for seed in range(args.seeds):
                path, prediction = (VP, "v") if loss == "scm" else (FLOW, "flow")
                teacher = None if name == "data" else DATA.flow_map(path) if loss == "regression" else DATA.model(path)
                model = sf.FlowMap(first_trained(seed, path, prediction, x, 2), path, prediction)
                if loss == "progressive-distillation":
                    found = distilled(model, teacher, x, args.steps, seed)
                else:
                    objective = MapObjective(loss=loss, teacher=teacher, stage=args.steps // 6, warmup=args.steps // 4)
                    rate = 3e-4 if loss == "scm" else 3e-3
                    found = train(model, x, objective, Recipe(steps=args.steps, batch=256, rate=rate, seed=seed))
                sampler = "consistency" if kind.one_time else "flow-map"
                figures.append(judges[path](found, sampler))
            table(loss, name, figures, (time.perf_counter() - begun) / args.seeds)


def distilled(model, teacher, x, steps, seed):
    """Progressive distillation: a grid of 16 steps, then of 8, 4, 2 and 1, each learned from the one before."""
    for grid in (16, 8, 4, 2, 1):
        objective = MapObjective(loss="progressive-distillation", teacher=teacher, steps=grid)
        found = train(model, x, objective, Recipe(steps=steps // 5, batch=256, rate=3e-3, seed=seed))
        model, teacher = copy.deepcopy(found), found
    return found


def table(loss, name, figures, seconds):
    each = torch.tensor(figures, dtype=torch.float64)
    cells = [f"{mean:.3f}" + (f" ± {spread:.3f}" if len(each) > 1 else "") for mean, spread in zip(
        each.mean(0)[::2].tolist(), (each.std(0) if len(each) > 1 else each[0])[::2].tolist(), strict=True
    )]
    line(loss, name, *cells, *[f"{value:.4f}" for value in each.mean(0)[1::2].tolist()], f"{seconds:.0f}")


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
