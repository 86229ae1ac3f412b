"""A small training run, as its own process: `python tests/trained.py out steps batch [dropout [precision]]`."""

import sys

import torch

import scoreflow as sf
from scoreflow.training import Objective, Recipe, train


def main(out, steps, batch, dropout=0.0, precision="32-true"):
    torch.manual_seed(0)
    data = sf.data.digits()
    net = sf.nets.UNet(widths=(8, 16), classes=10, dropout=float(dropout))
    model = sf.ScoreModel(net, sf.VPSDE.from_betas(sf.DDPMChain.linear().beta), time="index")
    recipe = Recipe(
        steps=int(steps),
        batch=int(batch),
        rate=2e-3,
        warmup=5,
        decay="constant",
        precision=precision,
        save_every=4,
        show_every=10,
    )
    train(model, data.train, Objective(drop=0.2, times="importance"), recipe, out=out, held_out=data.held_out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
