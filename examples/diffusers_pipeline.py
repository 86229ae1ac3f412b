"""Ten samplers of scoreflow in a pipeline of diffusers: `pipe.scheduler = DiffusersScheduler.from_config(...)`.

    OMP_NUM_THREADS=1 python examples/diffusers_pipeline.py --out docs/diffusers.png      # twenty seconds

The pipeline is diffusers' DDPMPipeline, the network the digits network that ships. Beside each row stands how many calls of the
network were made, and the largest difference to `sf.solve` with the same network and noise.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import torch
from diffusers import DDPMPipeline, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from rich.console import Console
from rich.table import Table

import scoreflow as sf
from scoreflow.interop import DiffusersScheduler

matplotlib.use("agg")
import matplotlib.pyplot as plt

SAMPLERS = ("ddpm", "ddim", "unipc", "dpm-solver++", "edm", "deis", "sde-dpm-solver++", "sa-solver", "er-sde", "auto")
NFE, N = 20, 10


class Digits(ModelMixin, ConfigMixin):
    """The digits network, class k mod 10 for sample k, as diffusers calls a UNet."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 1):
        super().__init__()
        self.net = sf.zoo.digits().net

    def forward(self, sample, timestep):
        t = torch.as_tensor(timestep).to(sample).expand(len(sample))
        return SimpleNamespace(sample=self.net(sample, t, y=torch.arange(len(sample)) % 10))


def drawn(sampler):
    """What the pipeline draws, the calls of the network, and the largest difference to `solve`."""
    net, calls = Digits(), []
    net.register_forward_hook(lambda *of: calls.append(1))
    pipe = DDPMPipeline(net, DDPMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DiffusersScheduler.from_config(pipe.scheduler.config, sampler=sampler, nfe=NFE)
    images = pipe(batch_size=N, generator=torch.Generator().manual_seed(0), output_type="np", num_inference_steps=NFE).images
    model, generator = sf.zoo.digits(), torch.Generator().manual_seed(0)
    plan = sf.plan(sampler, model.path, nfe=NFE)
    x_T, *noise = (torch.randn(N, 1, 8, 8, generator=generator) for _ in range(plan.noise_count + 1))
    noise = torch.stack(noise) if noise else None
    x = sf.solve(model, x_T, plan, noise=noise, y=torch.arange(N) % 10).x
    return images[..., 0], len(calls), float((torch.from_numpy(images[..., 0]) - (x[:, 0] / 2 + 0.5).clamp(0, 1)).abs().max())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("diffusers.png"))
    out = parser.parse_args().out
    table = Table("sampler", "calls", "largest difference to solve")
    figure, axes = plt.subplots(len(SAMPLERS), 1, figsize=(6, 6.4), layout="constrained")
    for sampler, ax in zip(SAMPLERS, axes, strict=True):
        images, calls, off = drawn(sampler)
        table.add_row(sampler, str(calls), f"{off:.0e}")
        ax.imshow(1 - torch.from_numpy(images).permute(1, 0, 2).reshape(8, -1), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(f"{sampler}, {calls}", rotation=0, ha="right", va="center", fontsize=9)
        ax.spines[:].set_visible(False)
    figure.savefig(out, dpi=110)
    Console().print(table)


if __name__ == "__main__":
    main()
