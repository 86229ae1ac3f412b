"""The flow maps that ship: the networks of the zoo, distilled to jump from any level to any other in one evaluation.

    OMP_NUM_THREADS=1 python examples/train_maps.py --data digits --out run-digits-map   # 10 minutes on a core
    OMP_NUM_THREADS=1 python examples/train_maps.py --data mnist --out run-mnist-map     # 25 minutes on a core

A map begins as a copy of its teacher's weights with a second time and a guidance scale, and learns v̄, which stays finite in a
jump from noise alone where ε̄ does not. The loss is `progressive`: a jump leads where two halves lead, and at r = t the map is
the teacher, guided at a scale between 1 and 4 that each sample draws and the network is told. Run again, the training goes on
where it was cut. `map.safetensors` in the folder is what ships, in half precision.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import scoreflow as sf
from scoreflow.training import MapObjective, Recipe, train

STEPS = {"digits": 4000, "mnist": 2500}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=STEPS, default="digits")
    parser.add_argument("--out", default="run", help="a folder")
    parser.add_argument("--steps", type=int, help="of training")
    args = parser.parse_args()
    console, out, data = Console(width=110), Path(args.out), sf.data.load(args.data)
    zoo, judge = getattr(sf.zoo, args.data)(), getattr(sf.zoo, f"{args.data}_classifier")()

    torch.manual_seed(0)
    model = sf.FlowMap(sf.nets.two_times(zoo.net, guidance=True), zoo.path, "v", zoo.time)
    objective = MapObjective(loss="progressive", teacher=sf.ClassifierFree(zoo, 1.0), guidance=(1.0, 4.0), drop=0.1)
    y = torch.arange(10).repeat(20)

    def show(at):
        """How often the class that was asked for is seen, in one and in two evaluations."""
        cells = [f"{at.step}", f"{at.loss:.4f}"]
        for scale in (1.0, 2.0):
            for nfe in (1, 2):
                x = sf.sample(at.model, (200, *data.shape), nfe=nfe, seed=range(200), y=y, scale=scale)
                with torch.no_grad():
                    cells.append(f"{(judge(x).argmax(1) == y).float().mean():.1%}")
        table = Table("step", "loss", "scale 1, 1 step", "2 steps", "scale 2, 1 step", "2 steps")
        table.add_row(*cells)
        console.print(table)

    recipe = Recipe(steps=args.steps or STEPS[args.data], batch=64, rate=5e-4, save_every=100, show_every=500)
    trained = train(model, data.train, objective, recipe, out=out, show=show, progress=console.is_terminal)
    trained.net.half()
    sf.save_model(trained, out / "map.safetensors")
    console.print(f"map: {out / 'map.safetensors'}")


if __name__ == "__main__":
    main()
