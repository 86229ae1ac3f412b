"""What a run gave, and how it shows itself."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from scoreflow import _html as html
from scoreflow._core.check import hidden
from scoreflow._samplers.cite import cite
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Sampler
from scoreflow._show import files
from scoreflow._show.picture import COLUMNS, drawable

if TYPE_CHECKING:
    from PIL.Image import Image

IN_A_CARD = 16, 4
"""Images that a notebook shows, and of how many the trajectory."""


@dataclass(frozen=True)
class Solution:
    """What a run gave, and how it was made.

    Attributes:
        x: the state at the last time, (B, ...).
        times: those of the run, N + 1 floats: the grid, and what churn and Restart add to it, which rises.
        states: with `trajectory=True` the states at all times, (N + 1, B, ...); else None.
        nfe: network evaluations, counted; for a run that controls error sample by sample, the most of any sample.
        nfe_per_sample: the same for each sample, (B,).
        backward: backward passes through the network, counted by call: of a `Posterior` whose method differentiates it.
        noise_count: draws made after the prior.
        sampler: what stepped, with its options.
        plan: the rows of a linear sampler; None for others.
        seed: of the run, so that it can be had again; None when the noise was given.
        memory: what a further step would use.
        rounds: calls of the network, one after the other: `nfe`, or fewer with `parallel`.
        model: the score model with its guidance, as text.
        cites: keys of the works that sampler and guidance rest on.
    """

    x: Tensor
    times: tuple[float, ...]
    states: Tensor | None = field(repr=False)
    nfe: int
    nfe_per_sample: tuple[int, ...] = field(repr=False)
    noise_count: int
    sampler: Sampler
    plan: Plan | None = field(repr=False)
    seed: int | tuple[int, ...] | None
    memory: tuple[Any, ...] = field(default=(), repr=False)
    rounds: int = field(default=0, repr=False)
    model: str = field(default="", repr=False)
    cites: tuple[str, ...] = field(default=(), repr=False)
    backward: int = 0

    def __repr__(self) -> str:
        backward = f", backward={self.backward}" if self.backward else ""
        return f"{type(self).__name__}({self.sampler!r}, {self._run}, nfe={self.nfe}{backward}, {self._state})"

    @property
    def _run(self) -> str:
        tuned = ", a plan of tune" if self.plan is not None and self.plan.fit is not None else ""
        return f"{len(self.times) - 1} steps from t={self.times[0]:g} to {self.times[-1]:g}{tuned}"

    @property
    def _state(self) -> str:
        return f"x={tuple(self.x.shape)} {self.x.dtype}"

    @property
    def citations(self) -> str:
        """BibTeX of the works that the sampler and the guidance rest on."""
        return cite(*self.cites)

    def show(self, trajectory: bool = False, *, range: tuple[float, float] = (-1, 1), shown: int | None = files.SHOWN) -> Image:
        """The samples as a picture, which a notebook displays. In a script, `.show()` of the picture opens a viewer.

        Images, (1, H, W) or (3, H, W), stand on a sheet, small ones enlarged; points of the plane, (2,), in a panel.

        Args:
            trajectory: the states on the way too, from left to right, at up to 9 of the run's times. A row of images is a
                sample.
            range: the values that are black and white, (-1, 1) to 0 and 255; what lies beyond is cut. With (1, -1) high values
                are dark.
            shown: how many images, from the first on; None: all.

        Raises:
            ValueError: samples of another shape, none at all, or a trajectory that was not kept. ModuleNotFoundError: Pillow,
                or for points matplotlib, is not installed.
        """
        return files.draw(self.x, self.states, self.times, trajectory, range, shown)

    def save(
        self,
        file: str | os.PathLike[str],
        *,
        trajectory: bool = False,
        range: tuple[float, float] = (-1, 1),
        shown: int | None = None,
    ) -> Path:
        """Write the samples, by the file's ending, and return its path. The file stands whole or not at all.

        | ending | what is written |
        |---|---|
        | .png, .jpg | the picture of `show` |
        | .gif | the trajectory, animated, at up to 60 of the run's times; whatever `trajectory` is |
        | .npy | x as an array |
        | .pt | x as a tensor, by `torch.save` |
        | .safetensors | x under that name; the metadata say how it was made |

        Args:
            file: its name.
            trajectory: write the states at all times instead: as a strip, as an array, or under the name `states`.
            range, shown: of pictures, as of `show`.

        Raises:
            ValueError, ModuleNotFoundError: as `show`; or the ending is another. FileNotFoundError: no such folder.
        """
        seed = "" if self.seed is None else json.dumps(self.seed)
        made = {"sampler": repr(self.sampler), "model": self.model, "nfe": str(self.nfe), "seed": seed}
        made |= {"backward": str(self.backward)} if self.backward else {}
        metadata = {**made, "times": json.dumps(self.times)}
        return files.write(file, self.x, self.states, self.times, trajectory, range, shown, metadata)

    def _repr_html_(self) -> str:
        facts = {
            "run": self._run,
            "evaluations": f"{self.nfe}" if self.rounds == self.nfe else f"{self.nfe}, in {self.rounds} rounds",
            **({"backward passes": f"{self.backward}"} if self.backward else {}),
            "draws": f"{self.noise_count}",
            "state": f"{self._state} on {self.x.device}",
            "seed": "none" if self.seed is None else self.seed if isinstance(self.seed, int) else f"{len(self.seed)} seeds",
            "model": self.model,
        }
        return html.card(f"{type(self).__name__} of {self.sampler!r}", facts, *self._pictures())

    def _pictures(self) -> list[str]:
        """The samples, and their trajectory if it was kept; nothing where they are no pictures."""
        if not drawable(self.x.shape[1:]) or not len(self.x) or hidden(self.x):
            return []
        try:
            parts = [html.image(self.show(shown=IN_A_CARD[0]), f"{len(self.x)} samples")]
            if self.states is not None:
                way = self.show(True, shown=IN_A_CARD[1])
                parts.append(html.image(way, f"the states at {min(COLUMNS, len(self.times))} times, the first at the left"))
            return parts
        except ModuleNotFoundError as error:
            return [html.note(f"No picture: {error}.")]
