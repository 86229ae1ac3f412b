"""Wrong calls of the public functions: each is refused at the front door, by an error that names the argument."""

import math
from functools import partial

import pytest
import torch

import scoreflow as sf

NAN, INF = math.nan, math.inf
PATH = sf.VPSDE()
X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
MODEL = sf.ScoreModel(lambda x, t: 0.1 * x, PATH)
NET = sf.nets.MLP(2, width=8).eval()
LABELLED = sf.ScoreModel(lambda x, t, y=None: 0.1 * x, PATH)

COUNT = ["ten", 0, -1, 2.5, True, NAN, [5]]
NUMBER = ["a", NAN, INF, [1.0], True, 1j]
TIME = ["a", 2.0, -0.1, NAN, True]
FLAG = ["no", 2, "yes"]
SEED = ["a", 1.5]
GRID = ["karrass", [1.0], [0.1, 0.9], [2.0, 0.0], [0.5, 0.5], 5]
STATE = [[1.0], X.long(), X + NAN, "x", None]
RUN = {
    "steps": COUNT, "nfe": COUNT, "grid": GRID, "start": TIME, "stop": TIME, "denoise": FLAG, "parallel": ["yes", 0, -1, 2.5],
    "seed": SEED, "noise": ["pink", 5], "trajectory": FLAG, "progress": FLAG, "grad": FLAG, "callback": [5, "f"],
    "sampler": [5, "ddimm", None], "model": [None, NET, "m"],
}  # fmt: skip
"""Of `solve`; those of `sample` are the same."""

STATES = {"model": [None, NET], "x_0": STATE}
CASES = {
    "solve": (sf.solve, dict(model=MODEL, x_T=X, sampler="ddim"), {**RUN, "x_T": STATE}),
    "sample": (
        sf.sample,
        dict(model=MODEL, shape=(3, 2), sampler="ddim", steps=2),
        {
            **{name: values for name, values in RUN.items() if name != "trajectory"},
            "shape": ["a", (), (-1, 2), (2.5, 2), 3.0],
            "dtype": ["float32", torch.int64, 5],
            "device": ["cudaa", 5.5],
        },
    ),
    "plan": (
        sf.plan,
        dict(sampler="ddim", path=PATH),
        {"path": [None, "vp", MODEL], **{name: RUN[name] for name in ("sampler", "steps", "nfe", "grid", "start", "stop")}},
    ),
    "grid": (sf.grid, dict(path=PATH, steps=5), {"path": [None, "vp"], "steps": COUNT, "start": TIME, "stop": TIME}),
    "log_prob": (
        sf.log_prob,
        dict(model=MODEL, x=X),
        {"model": [None, NET], "x": STATE, "stop": TIME, "divergence": ["exactt", 5], "seed": SEED, "rtol": ["a", NAN, -1.0]},
    ),
    "vlb": (sf.vlb, dict(model=MODEL, x_0=X, steps=5), {**STATES, "steps": COUNT, "seed": SEED, "decoder": ["d", 5]}),
    "invert": (sf.invert, dict(model=MODEL, x_0=X), {**STATES, "steps": COUNT, "nfe": COUNT, "start": TIME}),
    "image_to_image": (sf.image_to_image, dict(model=MODEL, x_0=X, start=0.5), {**STATES, "start": TIME, "steps": COUNT}),
    "interpolate": (sf.interpolate, dict(z_0=X, z_1=X, weights=3), {"weights": ["a", None], "kind": ["straight", 5]}),
    "bits_per_dim": (sf.bits_per_dim, dict(model=MODEL, x_0=X), {**STATES, "levels": [*COUNT, 1], "draws": COUNT}),
    "ScoreModel": (
        sf.ScoreModel,
        dict(net=NET, path=PATH),
        {
            "net": [5, "net"],
            "path": [None, "vp", NET],
            "prediction": ["epsilon", 5, None],
            "time": ["seconds", 5, "index"],
        },
    ),
    "VPSDE": (sf.VPSDE, {}, {"beta_min": [*NUMBER, 0.0, -1.0], "beta_max": NUMBER}),
    "SubVPSDE": (sf.SubVPSDE, {}, {"beta_min": [*NUMBER, 0.0], "beta_max": NUMBER}),
    "VESDE": (sf.VESDE, {}, {"sigma_min": [*NUMBER, 0.0, -1.0], "sigma_max": NUMBER}),
    "cosine": (sf.VPSDE.cosine, {}, {"s": [*NUMBER, -1.0]}),
    "Gaussian": (
        sf.Gaussian,
        dict(mean=torch.zeros(2)),
        {
            "mean": ["a", torch.tensor([NAN, 0]), torch.zeros(0)],
            "cov": ["a", NAN, -1.0, torch.tensor([1.0, NAN]), INF],
        },
    ),
    "ClassifierFree": (
        sf.ClassifierFree,
        dict(model=LABELLED, scale=2.0, null={"y": 0}),
        {
            "model": [None, NET],
            "scale": ["3", NAN, [2.0], True],
            "null": [5, "y", {"z": 0}],
            "interval": [5, (0.5, 0.2), ("a", 1), (0, 2)],
            "rescale": ["a", NAN, -1.0, 2.0],
        },
    ),
    "Thresholding": (
        sf.Thresholding,
        dict(model=MODEL),
        {"model": [None], "limit": [*NUMBER, 0.0], "percentile": ["a", 2.0, NAN]},
    ),
    "ipndm": (
        sf.get_sampler,
        dict(name="ipndm"),
        {"order": [0, 5, "a", 2.5, True], "damping": ["a", NAN, -0.1, 1.1, True]},
    ),
    "dpm-solver++": (sf.get_sampler, dict(name="dpm-solver++"), {"method": ["4m", 5], "r1": [0.5, "a"]}),
    "unipc": (sf.get_sampler, dict(name="unipc"), {"order": [0, 9, "a"], "form": ["epsilon", 5], "B": ["bh3", 1]}),
    "ddim": (sf.get_sampler, dict(name="ddim"), {"analytic": ["a", NAN, -1.0]}),
    "rectified": (partial(sf.grid, PATH, 5, "rectified"), {}, {"power": [*NUMBER, 0.0], "shift": [*NUMBER, -1.0]}),
    "karras": (partial(sf.grid, PATH, 5, "karras"), {}, {"rho": [*NUMBER, 0.0]}),
    "MLP": (
        sf.nets.MLP,
        {},
        {
            "channels": COUNT,
            "width": [*COUNT, 1],
            "depth": COUNT,
            "dropout": ["a", 2.0, NAN],
            "learned_variance": FLAG,
        },
    ),
    "Recipe": (
        sf.training.Recipe,
        {},
        {
            "steps": COUNT,
            "batch": COUNT,
            "rate": [*NUMBER, 0.0],
            "decay": ["cos", 5],
            "ema": ["a", 2.0],
            "precision": ["float", 16, None],
            "clip": ["a", -1.0, NAN],
            "seed": [*SEED, -1],
        },
    ),
    "Objective": (
        sf.training.Objective,
        {},
        {
            "weighting": ["simplee", 5],
            "times": ["unif", 5],
            "drop": ["a", 2.0, NAN],
            "vlb": ["a", -1.0, NAN],
            "variance": ["fixed", 5],
            "bins": [*COUNT, 1],
        },
    ),
}
"""A function, what is right, and by argument what is wrong."""

CALLS = [
    pytest.param(call, {**right, name: value}, name, id=f"{what}-{name}={value!r:.20}")
    for what, (call, right, wrong) in CASES.items()
    for name, values in wrong.items()
    for value in values
]


def test_there_are_enough():
    assert len(CALLS) >= 300


@pytest.mark.parametrize(("call", "keywords", "name"), CALLS)
def test_a_wrong_call_is_refused_by_name(call, keywords, name):
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        call(**keywords)
