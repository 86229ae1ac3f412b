"""A model against itself without its condition: classifier-free guidance, and CFG++, whose scale depends on the step."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.gaussian import Prediction
from scoreflow._core.row import double_on, per_sample
from scoreflow._score.conditions import joined, none_given, plain
from scoreflow._score.model import ScoreModel
from scoreflow._score.network import attribute, trains
from scoreflow._score.steps import single_rows
from scoreflow.guidance.base import Contrast, Scale, value_at


class ClassifierFree(Contrast):
    """Classifier-free guidance: `ε̂(x, ∅) + scale (ε̂(x, c) − ε̂(x, ∅))`. In the paper's w, scale = 1 + w.

    Args:
        model: conditional, and trained with conditions dropped.
        scale: 1 is the conditional model, 0 the unconditional; a number or a function of t.
        null: what means "none given", by the condition's name, such as `{"y": 10}`; the network's own (`net.null`) if None. A
            number or tensor fills a tensor, and a text each entry of a list of texts; a tensor may have a row a sample, or
            another length than the condition, and a dict goes name by name. Any other is given as it is.
        interval: (low, high), the times in which to guide (Kynkäänniemi et al., 2024). They give κ: `path.time(-math.log(κ))`.
        rescale: φ of Lin et al. (2024), Eqs. 14 to 16: by how much a sample's standard deviation is brought back to that of the
            conditional prediction, both of what the network predicts.
        batched: whether both branches run as one batch of 2B. They run one after the other if the network is in training mode,
            if a null has no rows of the condition's shape, or if a condition that no null names might have a row a sample:
            mark it `sf.shared` or `sf.each`.

    Raises:
        TypeError, ValueError: a network without a null, a null for what the network does not take, other values that are not
            allowed; on a call, conditions that hold none of those it names, a null that does not fit.

    Reference:
        Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), Eq. 6; Applying Guidance in a Limited Interval
        (Kynkäänniemi et al., 2024); Common Diffusion Noise Schedules and Sample Steps Are Flawed (Lin et al., 2024).
    """

    works: tuple[str, ...] = ("ho2022classifierfree",)

    def __init__(
        self, model: ScoreModel, scale: Scale, *, null: Mapping[str, Any] | None = None,
        interval: Sequence[float] | None = None, rescale: float = 0.0, batched: bool = True,
        prediction: Prediction | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, scale, interval, prediction)
        check.number("rescale", rescale, 0, 1), check.flag("batched", batched)
        if not isinstance(null, Mapping | None):
            raise TypeError(f"null must be a mapping of names to values, such as {{'y': 10}}, got {null!r}")
        self.options |= {"null": dict(null)} if null is not None else {}
        self.options |= ({"rescale": rescale} if rescale else {}) | ({} if batched else {"batched": False})
        found = attribute(model.net, "null") if null is None else null
        if not isinstance(found, Mapping) or not found:
            raise ValueError(
                f"null={null}: guidance needs an unconditional branch, and {type(model.net).__name__} does not say what means "
                "'none given'; give null={name: value}, such as null={'y': 10}, or train a network with conditions dropped"
            )
        for name in found if null is not None else ():
            if not model.accepts(name):
                raise ValueError(f"null names {name!r}, and the network {type(model.net).__name__} takes no such condition")
        self.null, self.rescale, self.batched, self.affine = dict(found), rescale, batched, not rescale
        limited = ("kynkaanniemi2024interval",) if interval is not None else ()
        self.works = (*self.works, *limited, *(("lin2024flawed",) if rescale else ()))

    @property
    def with_rows(self) -> frozenset[str]:
        return self.model.with_rows.union(self.null)

    @property
    def nulls(self) -> tuple[Mapping[str, Any], ...]:
        return (self.null, *self.model.nulls)

    def combine(self, ours: Tensor, other: Tensor, w: float | Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        out = super().combine(ours, other, w, x, t)
        if not self.rescale or not out.numel():
            return out
        std = out.flatten(1).std(1, correction=0)  # 0 of a flat sample, which stays as it is
        ratio = torch.where(std > 0, ours.flatten(1).std(1, correction=0) / std, 1.0)
        return out * per_sample(self.rescale * ratio + (1 - self.rescale), x)

    def _none(self, conditions: dict[str, Any], batch: int) -> dict[str, Any]:
        """The conditions, none given."""
        names = set(self.null) & {name for name, value in conditions.items() if plain(value) is not None}
        if not names:
            raise ValueError(
                f"guidance drops {' or '.join(self.null)}, and the conditions are {', '.join(conditions) or 'none'}: give one, "
                "such as solve(..., y=labels)"
            )
        return {k: none_given(k, v, self.null[k], batch) if k in names else v for k, v in conditions.items()}

    def _other(self, x: Tensor, t: float | Tensor, conditions: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        return self._inner(x, t, self._none(conditions, len(x)))

    def _both(self, x: Tensor, t: float | Tensor, conditions: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        apart = not self.batched or trains(self.net)
        two = None if apart else joined(conditions, self._none(conditions, len(x)), len(x), self.with_rows)
        if two is None:
            return super()._both(x, t, conditions)
        twice, times = torch.cat([x, x]), torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        doubled = self._over(self.model.of(torch.arange(len(x)).repeat(2), len(x), twice))
        output, variance_output = doubled._inner(twice, times, two)
        self.model.count(t)  # the second branch of the one call
        ours, other = output.chunk(2)
        return ours, other, None if variance_output is None else variance_output.chunk(2)[0]


class CFGPlusPlus(ClassifierFree):
    """CFG++: x̂_0 is guided, the noise that is put back is the unconditional one.

    On a step `x_s = a x_t + m x̂_0 + z ε`, which is `(a α_t + m) x̂_0 + a σ_t ε̂ + z ε`, that is classifier-free guidance with
    the scale `ω = scale (a α_t + m)/m`; for `ddim`, `ω = scale/(1 − κ_s/κ_t)`. A step upwards, of `invert`, undoes it: there
    x̂_0 is unconditional and the noise guided, `ω = −scale a α_t/m`. So it needs the run's rows, of one evaluation and one
    weight each: `ddpm`, `ddim` with any η, `pf-ode` and `reverse-sde` with euler.

    Args:
        model, null, batched: as of `ClassifierFree`.
        scale: λ of the paper, between 0 and 1 as a rule; a number or a function of t.

    Raises:
        ValueError: at the start of a run whose steps are not of that kind, and outside a run.

    Reference:
        CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models (Chung et al., 2024), Algorithm 2; upwards:
        DDIM inversion as in the authors' code.
    """

    works: tuple[str, ...] = ("chung2024cfgpp", "ho2022classifierfree")

    def __init__(self, model: ScoreModel, scale: Scale, *, null: Mapping[str, Any] | None = None, batched: bool = True) -> None:
        super().__init__(model, scale, null=null, batched=batched)
        self._scales: dict[float, float] | None = None

    def begin(self, steps: object) -> ScoreModel:
        began = copy.copy(super().begin(steps))
        assert isinstance(began, CFGPlusPlus)
        began._scales = {}
        for t, (to, row) in single_rows(steps, self.path, "CFG++").items():
            m, kept = float(row.m[0]), float(row.x) * self.path.alpha(t)
            began._scales[t] = value_at(self.scale, t) * (kept + m if to < t else -kept) / m
        return began

    def scale_at(self, t: float | Tensor) -> float | Tensor:
        if isinstance(t, Tensor) and t.device.type != "meta":
            scales = torch.tensor([self.scale_at(u) for u in t.flatten().tolist()], dtype=double_on(t.device), device=t.device)
            return scales if t.ndim else float(scales)
        if self._scales is None or t not in self._scales:
            raise ValueError(
                f"CFG++ depends on the step that is taken, and t={t} is the beginning of none: use solve or sample"
            )
        return self._scales[t]  # type: ignore[index]

    def _branches(self, t: float | Tensor) -> tuple[int, int] | tuple[Tensor, Tensor]:
        return (1, 1) if self._scales is None else super()._branches(t)  # of the runs to come two, at the most
