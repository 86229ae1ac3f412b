"""Train the small classifier whose features judge digits: `scoreflow/zoo/digits_features.safetensors`.

    python examples/train_digits_features.py

About 20 seconds on one core. It sees the 1297 training digits, each moved by up to a pixel, and is tested on the 500 held out.
"""

import argparse

import torch
from rich.console import Console
from torch.nn import functional as F

import scoreflow as sf
from scoreflow.zoo import save


def shifted(x, generator):
    """Each image moved by −1, 0 or 1 pixel along each axis, with paper moving in."""
    dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
    return F.pad(x, (1, 1, 1, 1), value=-1.0)[:, :, dy : dy + 8, dx : dx + 8]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="scoreflow/zoo/digits_features.safetensors")
    parser.add_argument("--epochs", type=int, default=120)
    args = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    data, net = sf.zoo.digits_data(), sf.nets.Classifier(channels=1, classes=10)
    steps = args.epochs * (len(data.train) // 64)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(args.epochs):
        for batch in torch.randperm(len(data.train), generator=generator).split(64)[: len(data.train) // 64]:
            loss = F.cross_entropy(net(shifted(data.train[batch], generator)), data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        right = (net(data.held_out).argmax(1) == data.held_out_labels).float().mean().item()
    save(net, args.out)
    Console().print(f"{right:.1%} of the held-out digits right; written to {args.out}")


if __name__ == "__main__":
    main()
