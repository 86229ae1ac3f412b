"""A small training run, which a process of its own can make."""

import torch

import scoreflow as sf
from scoreflow.training import Objective, Recipe, train


def main(out, steps, batch, dropout=0.0, precision="32-true"):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = sf.data.digits()
    net = sf.nets.UNet(widths=(8, 16), classes=10, dropout=dropout)
    model = sf.ScoreModel(net, sf.VPSDE.from_betas(sf.DDPMChain.linear().beta), time="index")
    recipe = Recipe(
        steps=steps,
        batch=batch,
        rate=2e-3,
        warmup=5,
        decay="constant",
        precision=precision,
        save_every=4,
        show_every=10,
    )
    held_out = torch.utils.data.Subset(data.held_out, range(48))
    train(model, data.train, Objective(drop=0.2, times="importance"), recipe, out=out, held_out=held_out)
