"""Latent diffusion: MNIST through a small autoencoder, a U-Net on its latents, and what is decoded.

    OMP_NUM_THREADS=1 python examples/latent.py --out latent

About 10 minutes on one core: a third for the autoencoder, the rest for the U-Net on latents of 4×7×7. It prints the error of
the autoencoder on images held out and how a classifier sees the samples, and writes latent/latent.png: images, what the
autoencoder makes of them, and samples.
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from rich.console import Console

import scoreflow as sf
from scoreflow.checkpoint import save

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def autoencoder(data, steps):
    """Trained on the squared error, with a little noise on the latents, so that what lies near a latent decodes to the like."""
    torch.manual_seed(0)
    net = sf.nets.Autoencoder(channels=1, latent=4, widths=(16, 32))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        x = data.train.x[torch.randint(len(data.train), (64,))]
        z = net.encoder(x)
        loss = (net.decoder(z + 0.1 * torch.randn_like(z)) - x).square().mean() + 1e-3 * z.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.fit(data.train.x)  # the scale factor: latents of mean 0 and variance 1
    return net.eval().requires_grad_(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="latent", help="a folder")
    parser.add_argument("--autoencoder-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2500)
    args = parser.parse_args()
    console, out = Console(), Path(args.out)
    out.mkdir(exist_ok=True)
    data = sf.data.load("mnist")
    net = autoencoder(data, args.autoencoder_steps)
    save(net, out / "autoencoder.safetensors")
    x = data.held_out.x[:16]
    error = (net(data.held_out.x) - data.held_out.x).square().mean().sqrt().item()
    console.print(f"autoencoder: RMS error {error:.3f} on images held out, of values from −1 to 1")

    train, held_out = (sf.latent.latents(net, part) for part in (data.train, data.held_out))
    torch.manual_seed(0)
    unet = sf.nets.UNet(channels=4, widths=(96,), blocks=2, attention=(0,), classes=10)
    path = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
    recipe = sf.training.Recipe(steps=args.steps, batch=64, show_every=500)
    objective = sf.training.Objective(drop=0.1, times="stratified")
    model = sf.training.train(
        sf.ScoreModel(unet, path, time="index"),
        train,
        objective,
        recipe,
        out=out,
        held_out=held_out,
        progress=console.is_terminal,
    )
    latent, y = sf.Latent(model, net), torch.arange(10).repeat(20)
    samples = latent.sample((200, *train.x.shape[1:]), "dpm-solver++", steps=20, seed=0, y=y)
    with torch.no_grad():
        probability = sf.zoo.mnist_classifier()(samples).softmax(1)
    right = (probability.argmax(1) == y).float().mean().item()
    console.print(f"200 samples: mean max-probability {probability.amax(1).mean():.3f}, the class asked for in {right:.1%}")
    figure, axes = plt.subplots(3, 1, figsize=(9, 2.2), layout="constrained")
    for ax, images, title in zip(axes, (x, net(x), samples[:16]), ("images", "decode(encode(x))", "samples"), strict=True):
        ax.imshow(images.clamp(-1, 1).squeeze(1).permute(1, 0, 2).reshape(28, -1), cmap="gray_r", vmin=-1, vmax=1)
        ax.set_title(title, fontsize=8)
        ax.axis("off")
    figure.savefig(out / "latent.png", dpi=110)
    console.print(f"picture: {out / 'latent.png'}")


if __name__ == "__main__":
    main()
