"""What a metric is: what it sees, its figures, what it needs, which way is better; and the registry of them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.check import one_of, suggestion
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.noise import stream_key
from scoreflow._samplers.plan import Plan
from scoreflow._score.oracle import GaussianMixture
from scoreflow.posterior import Posterior
from scoreflow.studies.features import featured
from scoreflow.studies.simulated import Simulated

Better = Literal["lower", "higher", "either"]
Need = Literal[
    "reference", "deterministic", "finest", "rows", "data", "features", "oracle", "mixture", "gaussian", "timed",
    "posterior", "simulated", "evidence",
]  # fmt: skip


class MetricInput(NamedTuple):
    """What a metric sees: one block of a cell.

    Attributes:
        x: the samples (n, ...).
        seed: of the block; what a metric draws is drawn from it, the same for every sampler.
        reference: the converged solution from the same seeds, or None.
        finest: the same sampler's samples along the same Brownian paths at many more steps, or None.
        data: what the samples are compared to (m, ...), or None.
        features: states (n, ...) to features (n, d), or None.
        oracle: the data's distribution, if it is known.
        path, plan: of the run; no plan for a sampler that is not made of rows.
        simulated: the truths of the block and what was measured of each, or None.
        posterior: the model, if it is a `Posterior`.
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
    simulated: Simulated | None = None
    posterior: Posterior | None = None

    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples and data, flattened, float64: (n, d) and (m, d)."""
        assert self.data is not None
        return flat(self.x), flat(self.data)

    def featured(self) -> tuple[np.ndarray, np.ndarray]:
        """Their features; the samples themselves where no features were given."""
        if self.features is None:
            return self.pair()
        assert self.data is not None
        x, y = featured(self.features, self.x, self.data)
        return x, y


Measure = Callable[[MetricInput], float | Mapping[str, float]]
M = TypeVar("M", bound=Measure)


@dataclass(frozen=True)
class Metric:
    """A metric. Calling it gives its figures by name: one under its own name, several as `name/part`.

    Attributes:
        name: what is typed. needs: what a study must have for it.
        better: which way is good, of all its figures or one a part.
        samples: whether it looks at samples, or at the rows of the run alone.
        positive: whether it is drawn on a logarithmic axis.
        measure: the function.
        parts: of its figures; empty for one figure, or where they are known only when it is measured.
        best: of "either", the value that is best, one a part or None where it is the floor's; empty for none.
    """

    name: str
    better: Better | tuple[Better, ...]
    needs: tuple[Need, ...]
    measure: Measure
    samples: bool = True
    positive: bool = True
    parts: tuple[str, ...] = ()
    best: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        for better in (self.better,) if isinstance(self.better, str) else self.better:
            one_of("better", better, get_args(Better))
        for name, given in (("better", self.better), ("best", self.best)):
            if given and not isinstance(given, str) and len(given) != len(self.figures):
                raise ValueError(f"{name} must have a value for each of {', '.join(self.figures)}, got {given!r}")
        if isinstance(self.needs, str):
            raise TypeError(f"needs must be a sequence of {', '.join(get_args(Need))}, got {self.needs!r}")
        for need in self.needs:
            one_of("needs", need, get_args(Need))

    def __call__(self, inputs: MetricInput) -> dict[str, float]:
        """Its figures.

        Raises:
            ValueError: samples that are not finite, or a figure that is NaN.
        """
        if self.samples and not bool((finite := inputs.x.detach().flatten(1).isfinite().all(1)).all()):
            raise ValueError(f"metric {self.name!r}: {int((~finite).sum())} of {len(finite)} samples are not finite")
        value = self.measure(inputs)
        parts = value if isinstance(value, Mapping) else {"": value}
        figures = {f"{self.name}/{part}" if part else self.name: float(v) for part, v in parts.items()}
        for figure, v in figures.items():
            if math.isnan(v):
                raise ValueError(f"metric {self.name!r} gives NaN for its figure {figure!r}")
        return figures

    @property
    def meaning(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.measure) or "").partition("\n")[0]

    @property
    def floor(self) -> str:
        """What it gives for data against data, as its docstring says under `Floor:`."""
        return self._section("Floor")

    @property
    def reference(self) -> str:
        """The works its docstring names under `Reference:`."""
        return self._section("Reference")

    def _section(self, section: str) -> str:
        found = re.search(rf"^{section}:\n((?: +.+\n?)+)", inspect.getdoc(self.measure) or "", flags=re.M)
        return " ".join(found[1].split()) if found else ""

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of its figures."""
        return tuple(f"{self.name}/{part}" for part in self.parts) or (self.name,)

    def better_of(self, figure: str) -> Better:
        """Which way is good in this figure of it."""
        return self.better if isinstance(self.better, str) else self.better[self.figures.index(figure)]

    def best_of(self, figure: str) -> float | None:
        """The value that is best in this figure, where it is known beforehand."""
        return self.best[self.figures.index(figure)] if self.best else None


METRICS: dict[str, Metric] = {}


def metric(
    name: str,
    better: Better | tuple[Better, ...] = "lower",
    needs: Iterable[Need] = (),
    *,
    samples: bool = True,
    positive: bool = True,
    parts: Iterable[str] = (),
    best: Iterable[float | None] = (),
) -> Callable[[M], M]:
    """Register a metric by name: a function of a `MetricInput` whose docstring says what it means.

    Raises:
        ValueError: the name is taken.
    """

    def register(measure: M) -> M:
        if name in METRICS:
            raise ValueError(f"the metric name {name!r} is taken")
        given = needs if isinstance(needs, str) else tuple(needs)  # a word alone is refused there
        METRICS[name] = Metric(name, better, given, measure, samples, positive, tuple(parts), tuple(best))  # type: ignore[arg-type]
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


def table() -> str:
    """The registered metrics as a Markdown table."""
    lines = ["| metric | meaning | better | needs | data against data | reference |", "|---|---|---|---|---|---|"]
    for m in METRICS.values():
        figures = "<br>".join(f"`{figure}`" for figure in m.figures)
        better = m.better if isinstance(m.better, str) else "<br>".join(m.better)
        cells = (figures, m.meaning, better, ", ".join(m.needs), m.floor, m.reference)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def draws(seed: int, *key: Any) -> torch.Generator:
    """A generator of its own for what a study draws beside the runs."""
    return torch.Generator().manual_seed(stream_key(seed, *key))


def flat(x: Tensor) -> np.ndarray:
    """(n, d) on the host, float64."""
    return x.detach().to("cpu", torch.float64).flatten(1).numpy()
