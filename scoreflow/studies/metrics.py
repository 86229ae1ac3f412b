"""How good samples are: metrics by name, each with its meaning, what it needs, and which way is better."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from scoreflow.analysis import law
from scoreflow.check import suggestion
from scoreflow.noise import stream_key
from scoreflow.oracle import Gaussian, GaussianMixture
from scoreflow.path import GaussianPath
from scoreflow.plan import Plan

Better = Literal["lower", "higher", "either"]
Need = Literal["reference", "deterministic", "finest", "data", "features", "oracle", "mixture", "gaussian", "timed"]


class Scene(NamedTuple):
    """What a metric sees: one block of a cell.

    Attributes:
        x: the samples (n, ...).
        seed: of the block; what a metric draws is drawn from it, the same for every sampler.
        reference: the converged solution from the same seeds, or None.
        finest: the same sampler's samples along the same Brownian paths at many more steps, or None.
        data: what the samples are compared to (m, ...), or None.
        features: states (n, ...) to features (n, d), or None.
        oracle: the data's distribution, if it is known.
        path, plan: of the run.
        seconds, evaluation: the run's time, and that of one network evaluation on the batch, measured beside it.
    """

    x: Tensor
    seed: int
    reference: Tensor | None = None
    finest: Tensor | None = None
    data: Tensor | None = None
    features: Callable[[Tensor], Tensor] | None = None
    oracle: GaussianMixture | None = None
    path: GaussianPath | None = None
    plan: Plan | None = None
    seconds: float = math.nan
    evaluation: float = math.nan

    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples and data, flattened, float64."""
        assert self.data is not None
        return flat(self.x), flat(self.data)

    def featured(self) -> tuple[np.ndarray, np.ndarray]:
        """Their features; the samples themselves where no features were given."""
        if self.features is None:
            return self.pair()
        assert self.data is not None
        with torch.no_grad():
            return flat(self.features(self.x)), flat(self.features(self.data))


Measure = Callable[[Scene], float | Mapping[str, float]]
M = TypeVar("M", bound=Measure)


@dataclass(frozen=True)
class Metric:
    """A metric. Calling it gives its figures by name: one under its own name, several as `name/part`.

    Attributes:
        name: what is typed. better: which way is good. needs: what a study must have for it.
        samples: whether it looks at samples, or at the rows of the run alone.
        positive: whether it is drawn on a logarithmic axis.
        measure: the function.
    """

    name: str
    better: Better
    needs: tuple[Need, ...]
    measure: Measure
    samples: bool = True
    positive: bool = True
    parts: tuple[str, ...] = ()

    def __call__(self, scene: Scene) -> dict[str, float]:
        value = self.measure(scene)
        if isinstance(value, Mapping):
            return {f"{self.name}/{part}": float(v) for part, v in value.items()}
        return {self.name: float(value)}

    @property
    def meaning(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.measure) or "").partition("\n")[0]

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of its figures."""
        return tuple(f"{self.name}/{part}" for part in self.parts) or (self.name,)


METRICS: dict[str, Metric] = {}


def metric(
    name: str,
    better: Better = "lower",
    needs: Iterable[Need] = (),
    *,
    samples: bool = True,
    positive: bool = True,
    parts: Iterable[str] = (),
) -> Callable[[M], M]:
    """Register a metric by name: a function of a `Scene` whose docstring says what it means.

    Raises:
        ValueError: the name is taken.
    """

    def register(measure: M) -> M:
        if name in METRICS:
            raise ValueError(f"the metric name {name!r} is taken")
        METRICS[name] = Metric(name, better, tuple(needs), measure, samples, positive, tuple(parts))
        return measure

    return register


def get_metric(name: str | Metric) -> Metric:
    """The metric of this name.

    Raises:
        ValueError: nothing has the name; the near ones are named.
    """
    if isinstance(name, Metric):
        return name
    if name not in METRICS:
        raise ValueError(f"no metric is called {name!r}{suggestion(name, METRICS)}")
    return METRICS[name]


def flat(x: Tensor) -> np.ndarray:
    """(n, d) on the host, float64."""
    return x.detach().to("cpu", torch.float64).flatten(1).numpy()


# -- to the solution from the same seeds -----------------------------------------------------------------------------------


def _distance(x: Tensor, y: Tensor) -> dict[str, float]:
    off = np.sqrt(((flat(x) - flat(y)) ** 2).mean(1))
    return {"median": np.median(off), "q90": np.quantile(off, 0.9), "rms": math.sqrt((off**2).mean())}


@metric("trajectory", needs=("reference", "deterministic"), parts=("median", "q90", "rms"))
def trajectory(scene: Scene) -> dict[str, float]:
    """Distance to the converged probability-flow ODE from the same seeds, RMS an entry: median, 90 % quantile, RMS.

    For samplers without noise. It is discretisation error alone: a wrong network has none. A few trajectories that end in
    another mode rule the RMS.
    """
    assert scene.reference is not None
    return _distance(scene.x, scene.reference)


@metric("strong", needs=("finest",), parts=("median", "q90", "rms"))
def strong(scene: Scene) -> dict[str, float]:
    """Distance to the same sampler at 4 times the largest budget, along the same Brownian paths, RMS an entry."""
    assert scene.finest is not None
    return _distance(scene.x, scene.finest)


# -- to data ------------------------------------------------------------------------------------------------------------


@metric("w2", needs=("data",))
def w2(scene: Scene) -> float:
    """Wasserstein-2 distance to the data by exact optimal transport, RMS an entry. It is above 0 for data against data."""
    import ot

    x, y = scene.pair()
    return math.sqrt(ot.emd2([], [], ot.dist(x, y)) / x.shape[1])


@metric("sliced-w2", needs=("data",))
def sliced_w2(scene: Scene) -> float:
    """Sliced Wasserstein-2 distance to the data, over 200 directions. It is above 0 for data against data."""
    import ot

    x, y = scene.pair()
    return float(ot.sliced_wasserstein_distance(x, y, n_projections=200, seed=0))


@metric("energy", needs=("data",), positive=False)
def energy(scene: Scene) -> float:
    """Squared energy distance to the data, `2 E|X−Y| − E|X−X'| − E|Y−Y'|`, unbiased: 0 on average for data against data.

    Reference:
        Energy statistics: A class of statistics based on distances (Székely & Rizzo, 2013).
    """
    from scipy.spatial.distance import cdist, pdist

    x, y = scene.pair()
    return float(2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean())


def _mmd(kernel: Callable[[np.ndarray, np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """`E k(X, X') + E k(Y, Y') − 2 E k(X, Y)`, unbiased."""

    def within(a: np.ndarray) -> float:
        k = kernel(a, a)
        return float((k.sum() - np.trace(k)) / (len(a) * (len(a) - 1)))

    return within(x) + within(y) - 2 * float(kernel(x, y).mean())


@metric("mmd", needs=("data",), positive=False)
def mmd(scene: Scene) -> float:
    """Squared maximum mean discrepancy to the data, Gaussian kernel as wide as the data's median distance; unbiased.

    Reference:
        A Kernel Two-Sample Test (Gretton et al., 2012), Eq. 3.
    """
    from scipy.spatial.distance import cdist, pdist

    x, y = scene.pair()
    width = float(np.median(pdist(y[:1000])))
    return _mmd(lambda a, b: np.exp(-(cdist(a, b) ** 2) / (2 * width**2)), x, y)


# -- in a feature space ---------------------------------------------------------------------------------------------------


@metric("kid", needs=("data", "features"), positive=False)
def kid(scene: Scene) -> float:
    """Kernel distance in feature space: squared MMD with the kernel `(x·y/d + 1)³`; unbiased.

    Reference:
        Demystifying MMD GANs (Bińkowski et al., 2018), Section 4.
    """
    x, y = scene.featured()
    return _mmd(lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3, x, y)


@metric("frechet", needs=("data", "features"))
def frechet(scene: Scene) -> float:
    """Fréchet distance in feature space, `|μ−μ'|² + tr(C + C' − 2 (C C')^{1/2})`. It falls with n, also for data.

    Reference:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017), Eq. 6.
    """
    import ot

    x, y = scene.featured()
    means, covs = zip(*((a.mean(0), np.atleast_2d(np.cov(a.T))) for a in (x, y)), strict=True)
    return float(ot.gaussian.bures_wasserstein_distance(means[0], means[1], covs[0], covs[1])) ** 2


@metric(
    "manifold",
    better="higher",
    needs=("data", "features"),
    parts=("precision", "recall", "density", "coverage"),
    positive=False,
)
def manifold(scene: Scene) -> dict[str, float]:
    """Precision, recall, density and coverage in feature space, by the 5 nearest neighbours.

    Reference:
        Improved Precision and Recall (Kynkäänniemi et al., 2019); Reliable Fidelity and Diversity Metrics (Naeem et al., 2020).
    """
    from scipy.spatial.distance import cdist

    x, y = scene.featured()
    k = min(5, len(x) - 1, len(y) - 1)
    to_x, to_y = (np.partition(cdist(a, a), k, axis=1)[:, k] for a in (x, y))
    apart = cdist(y, x)
    inside = apart < to_y[:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (apart < to_x).any(1).mean(),
        "density": inside.sum(0).mean() / k,
        "coverage": (apart.min(1) < to_y).mean(),
    }


# -- to a known law -------------------------------------------------------------------------------------------------------


@metric("modes", needs=("mixture",))
def modes(scene: Scene) -> float:
    """Total variation between the weights of the mixture's modes and the shares of samples in them. Above 0 for data."""
    mixture = scene.oracle
    assert mixture is not None
    share = torch.bincount(mixture.mode(scene.x), minlength=len(mixture.weights)).double() / len(scene.x)
    return float((share - mixture.weights.to(share)).abs().sum() / 2)


@metric("log-likelihood", better="either", needs=("oracle",), positive=False)
def log_likelihood(scene: Scene) -> float:
    """Mean log-density of the samples under the data's distribution, in nats; good where it is that of data."""
    assert scene.oracle is not None
    return float(scene.oracle.log_prob(scene.x).mean())


@metric("w2-exact", needs=("gaussian",), samples=False)
def w2_exact(scene: Scene) -> float:
    """Wasserstein-2 distance of the sampler's output law to Gaussian data, computed from its rows without sampling."""
    return _law(scene)[0]


@metric("kl-exact", needs=("gaussian",), samples=False)
def kl_exact(scene: Scene) -> float:
    """`KL(output ‖ data)` on Gaussian data in nats, computed from the sampler's rows without sampling."""
    return _law(scene)[1]


def _law(scene: Scene) -> tuple[float, float]:
    assert isinstance(scene.oracle, Gaussian) and scene.path is not None
    if scene.plan is None:
        return math.nan, math.nan
    out = law(scene.plan, scene.path, scene.oracle)
    return out.w2, out.kl


# -- what it costs --------------------------------------------------------------------------------------------------------


@metric("time", needs=("timed",))
def time(scene: Scene) -> float:
    """Time of the run in network evaluations: over that of one evaluation of the batch, measured beside it."""
    return scene.seconds / scene.evaluation


def draws(seed: int, *key: Any) -> torch.Generator:
    """A generator of its own for what a study draws beside the runs."""
    return torch.Generator().manual_seed(stream_key(seed, *key))
