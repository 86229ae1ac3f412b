"""Train the digits network that ships with the package: L_simple on scikit-learn's digits, about 20 minutes on a core.

    python examples/train_digits.py --out digits.safetensors

Prints the loss on training and on held-out images; writes the averaged weights.
"""

import argparse
import math
import time

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from scoreflow import DDPMChain, zoo
from scoreflow.nets import UNet


def l_simple(net, chain, images, labels, generator):
    """E‖ε − ε_θ(x_t, t)‖² with t uniform on 1…T (Ho et al., 2020, Eq. 14)."""
    t = torch.randint(1, chain.T + 1, (len(images),), generator=generator)
    eps = torch.randn(images.shape, generator=generator)
    return (net(chain.q_sample(images, t, eps), t - 1, labels) - eps).square().mean()


@torch.no_grad()
def held_out_loss(net, chain, data):
    """L_simple on the held-out images, ten times over, always with the same draws."""
    generator = torch.Generator().manual_seed(1)
    net.eval()
    losses = [l_simple(net, chain, data.held_out, data.held_out_labels, generator) for _ in range(10)]
    return torch.stack(losses).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="digits.safetensors", help="where the weights go")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--drop-labels", type=float, default=0.1, help="share of labels dropped")
    args = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    data, chain = zoo.digits_data(), DDPMChain.linear()
    net = UNet(channels=1, widths=(32, 64), attention=(1,), classes=10, dropout=0.1)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 200, 0.5 * (1 + math.cos(math.pi * i / args.steps)))
    )
    begun, running = time.time(), 0.0
    for i in tqdm(range(1, args.steps + 1), desc="training"):
        net.train()
        pick = torch.randint(len(data.train), (args.batch,), generator=generator)
        labels = data.train_labels[pick]
        labels = torch.where(torch.rand(args.batch, generator=generator) < args.drop_labels, net.classes, labels)
        loss = l_simple(net, chain, data.train[pick], labels, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(net)
        running += loss.item()
        if i % 500 == 0 or i == args.steps:
            print(
                f"step {i:6d}  loss {running / 500:.4f}  held out {held_out_loss(average.module, chain, data):.4f}"
                f"  minutes {(time.time() - begun) / 60:.1f}",
                flush=True,
            )
            running = 0.0
            zoo.save(average.module, args.out)


if __name__ == "__main__":
    main()
