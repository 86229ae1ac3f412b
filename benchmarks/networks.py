"""Small trained networks, on which samplers are judged as on oracles: each against its own ODE, solved in float64.

    OMP_NUM_THREADS=1 python benchmarks/networks.py           # trains those that are not there, half an hour on one core
    OMP_NUM_THREADS=1 python benchmarks/networks.py mixer     # those whose names hold this

They differ in what decides how smooth a learned score is: network (U-Net, perceptron, mixer, transformer), activation,
prediction, path, precision, and data, whose mean is not 0. Two of each kind, so that one may be held out. The weights
go to `benchmarks/trained/`. Fashion-MNIST is Debian's package dataset-fashion-mnist.
"""

import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import scoreflow as sf
from scoreflow.nets.embedding import sinusoidal
from scoreflow.training import Objective, Recipe, train

FOLDER = Path(__file__).parent / "trained"
LINEAR = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
COSINE = sf.VPSDE.from_betas(sf.DDPMChain.cosine().beta)


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al., 2021) with ReLU: images (B, C, S, S) in patches, the time as one more channel."""

    def __init__(self, channels, size, patch=4, width=64, depth=4):
        super().__init__()
        places = (size // patch) ** 2
        self.into = nn.Conv2d(channels + 1, width, patch, patch)
        self.out = nn.ConvTranspose2d(width, channels, patch, patch)
        self.norms = nn.ModuleList(nn.LayerNorm([width, places]) for _ in range(2 * depth + 1))
        self.along = nn.ModuleList(self._body(places, 2 * places) for _ in range(depth))
        self.across = nn.ModuleList(self._body(width, 2 * width) for _ in range(depth))

    @staticmethod
    def _body(width, inner):
        return nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))

    def forward(self, x, t):
        clock = t.to(x).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        h = self.into(torch.cat([x, clock], 1))
        shape, h = h.shape, h.flatten(2)
        for i, (along, across) in enumerate(zip(self.along, self.across, strict=True)):
            h = h + along(self.norms[2 * i](h))
            h = h + across(self.norms[2 * i + 1](h).mT).mT
        return self.out(self.norms[-1](h).reshape(shape))


class Perceptron(nn.Module):
    """Vectors (B, d) and times through `depth` layers of ReLU, the time as sinusoidal features beside the state."""

    def __init__(self, d, width=128, depth=4):
        super().__init__()
        sizes = [d + 32, *[width] * depth]
        self.body = nn.Sequential(*(m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())))
        self.last = nn.Linear(width, d)

    def forward(self, x, t):
        return self.last(self.body(torch.cat([x, sinusoidal(100 * t, 32).to(x)], 1)))


class Divided(nn.Module):
    """A network whose output over σ_t is the score: what it learns is of size 1."""

    def __init__(self, net, path):
        super().__init__()
        self.net, self.path = net, path

    def forward(self, x, t):
        sigma = self.path.sigma(t.double()).to(x).reshape(-1, *[1] * (x.ndim - 1))
        return self.net(x, t) / sigma


def fashion():
    """20 000 of Fashion-MNIST, from 0 to 1."""
    return (sf.data.fashion().train.x[:20_000] + 1) / 2


def small_fashion():
    """The same from −1 to 1 at 14×14, with classes."""
    data = sf.data.fashion().train
    return sf.data.Images(nn.functional.avg_pool2d(data.x[:20_000], 2), data.y[:20_000])


def icons():
    """Icons, from 0 to 1: mostly white."""
    return (sf.data.icons().train.x + 1) / 2


def photos():
    """Photographs at 8×8."""
    return nn.functional.avg_pool2d(sf.data.photos().train.x, 4)


def digits():
    """8×8 digits, without their classes."""
    return sf.data.digits().train.x


def moons():
    """Two moons about (3, −2), 2-D."""
    from sklearn.datasets import make_moons

    return torch.from_numpy(make_moons(20_000, noise=0.08, random_state=0)[0]).float() + torch.tensor([3.0, -2.0])


def roll():
    """A Swiss roll about (1, 1), 2-D."""
    from sklearn.datasets import make_swiss_roll

    return torch.from_numpy(make_swiss_roll(20_000, noise=0.4, random_state=0)[0][:, [0, 2]] / 8).float() + 1


@dataclass(frozen=True)
class Network:
    """A network, what it is trained on, and for how many steps of `batch`; the shape of its states; its group."""

    build: object
    data: object
    path: sf.GaussianPath
    prediction: str
    shape: tuple[int, ...]
    held_out: bool
    steps: int = 4000
    batch: int = 64
    time: str = "unit"
    rate: float = 1e-3
    dtype: torch.dtype = torch.float32

    def score(self, net, dtype=None):
        """The score model of a network, in its own dtype or another."""
        return sf.ScoreModel(net.to(dtype or self.dtype).eval(), self.path, self.prediction, self.time)


CONSTANT = sf.VPSDE(10.0, 10.0)
NETWORKS = {
    "mixer, ReLU, fashion, score, constant β": Network(
        lambda: Divided(Mixer(1, 28), CONSTANT), fashion, CONSTANT, "score", (1, 28, 28), False, 5000
    ),
    "mixer, ReLU, icons, x0, constant β": Network(lambda: Mixer(3, 16), icons, CONSTANT, "x0", (3, 16, 16), True, 5000),
    "perceptron, ReLU, roll, eps, linear β": Network(
        lambda: Perceptron(2), roll, sf.VPSDE(), "eps", (2,), False, 20_000, 256
    ),
    "perceptron, SiLU, moons, v, cosine": Network(
        lambda: sf.nets.MLP(2, 96, 3, time_scale=1.0), moons, COSINE, "v", (2,), True, 8000, 256, "index"
    ),
    "U-Net, SiLU, photographs, v, cosine": Network(
        lambda: sf.nets.UNet(3, (24, 48)), photos, COSINE, "v", (3, 8, 8), False, 4000, 64, "index"
    ),
    "U-Net, SiLU, fashion 14×14, eps, linear chain": Network(
        lambda: sf.nets.UNet(1, (24, 48), classes=10), small_fashion, LINEAR, "eps", (1, 14, 14), True, 4000, 64,
        "index",
    ),
    "transformer, GELU, digits, flow, flow": Network(
        lambda: sf.nets.DiT(1, 8, 2, 96, 3, time_scale=1000.0), digits, sf.Flow(), "flow", (1, 8, 8), False, 5000
    ),
    "perceptron, ReLU, moons, flow, flow": Network(
        lambda: Perceptron(2), moons, sf.Flow(), "flow", (2,), True, 20_000, 256
    ),
    "perceptron, ReLU, roll, eps, linear β, bf16": Network(
        None, None, sf.VPSDE(), "eps", (2,), False, dtype=torch.bfloat16
    ),
    "U-Net, SiLU, fashion 14×14, eps, linear chain, bf16": Network(
        None, None, LINEAR, "eps", (1, 14, 14), True, time="index", dtype=torch.bfloat16
    ),
}  # fmt: skip
"""By name; those of 16 bits are the same weights rounded."""


SHIPPED = ("zoo:digits", "zoo:mnist")


def file(name):
    """Where the weights of a network are."""
    plain = name.removesuffix(", bf16").replace("β", "beta").replace("×", "x")
    return FOLDER / ("-".join(plain.replace(",", "").lower().split()) + ".safetensors")


def built(name):
    """The network by this name, without its weights."""
    torch.manual_seed(0)
    return NETWORKS[name.removesuffix(", bf16")].build()


def make(name):
    """Train one."""
    network, begun = NETWORKS[name], time.perf_counter()
    model = network.score(built(name), torch.float32)
    model.net.train()
    recipe = Recipe(steps=network.steps, batch=network.batch, rate=network.rate, show_every=network.steps)
    losses = []
    drop = Objective(drop=0.15) if getattr(model.net, "null", None) else Objective()
    kept = train(model, network.data(), drop, recipe, show=lambda p: losses.append(p.loss))
    sf.save_model(kept, file(name))
    print(f"{name}: loss {losses[-1]:.4f}, {time.perf_counter() - begun:.0f} s", flush=True)


def load(name, dtype=None):
    """The score model by this name: one of `NETWORKS`, trained if it is not there, or one that ships."""
    if name in SHIPPED:
        return getattr(sf.zoo, name[4:])(dtype=dtype or torch.float32)
    if not file(name).exists():
        make(name.removesuffix(", bf16"))
    network, net = NETWORKS[name], built(name)
    loaded = sf.load_model(file(name), net, path=network.path)
    return network.score(loaded.net.to(network.dtype), dtype)  # rounded first: float64 of what 16 bits hold


def shape(name):
    """Of one of its states."""
    return {"zoo:digits": (1, 8, 8), "zoo:mnist": (1, 28, 28)}[name] if name in SHIPPED else NETWORKS[name].shape


def classes(name):
    """How many classes it was trained with."""
    return 10 if name in SHIPPED or "fashion 14" in name else 0


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in NETWORKS:
        if all(word in name for word in sys.argv[1:]) and not file(name).exists():
            make(name)
