"""What a reference run is made of, as a TOML file says it: a network, what judges its samples, and cells with their figures."""

from __future__ import annotations

import functools
import hashlib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from scoreflow._core import check
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import grid, sigmas
from scoreflow._samplers.plan import Plan, PlannedStep
from scoreflow._samplers.step import Linear, get_sampler
from scoreflow.studies.spec import parse

FORMATS = ("safetensors", "tar")
"""Of samples: exact, or images of 8 bits, which a Fréchet distance of Inception features is defined by."""


def ddim_quadratic(path: GaussianPath, n: int) -> tuple[float, ...]:
    """The times of DDIM's code for CIFAR-10: labels `⌊0.8 T (i/(n − 1))²⌋` from above, then t = 0.

    Of labels that fall together one is left, as a step between them moves nothing: from 100 steps on there are fewer than n.

    Reference:
        Denoising Diffusion Implicit Models (Song et al., 2021), Appendix D.2; `runners/diffusion.py` of its code, "quad".
    """
    if path.T is None:
        raise ValueError(f"grid 'ddim-quadratic' needs a path made from betas; {path} has no chain")
    labels = np.unique((np.linspace(0, math.sqrt(0.8 * path.T), n) ** 2).astype(int))
    return (*(float(label + 1) / path.T for label in labels[::-1]), 0.0)


EXPLICIT = {"ddim-quadratic": ddim_quadratic}
"""Times by name that are no grids of the library, as they need not have as many steps as were asked for."""


def lowered(sampler: Linear, path: GaussianPath, times: tuple[float, ...]) -> Plan:
    """A multistep sampler whose order is at most the number of steps that are left, so that n steps take n evaluations.

    "lower_order_final" of the authors' code of DPM-Solver++ and UniPC, which ends above σ = 0. What looks back on fewer
    outputs is of lower order; a corrector, which the last step would evaluate for, is left out there.
    """
    steps, evaluated = list[PlannedStep](), tuple[float, ...]()
    for left, (t, s) in zip(range(len(times) - 1, 0, -1), pairwise(times), strict=True):
        (step,) = replace(sampler, history=min(sampler.history, left)).build(path, evaluated, t, s)
        steps.append(step if left > 1 else step._replace(stages=step.stages[:1]))
        evaluated = sampler._evaluated(step, evaluated)
    return sampler._planned(path, tuple(steps))


@dataclass(frozen=True)
class Cell:
    """A sampler at a budget, with the figure to compare to.

    Attributes:
        sampler: its name and options as typed, `ddim(eta=1.0)`. nfe: the budget in evaluations.
        grid: a name, or a mapping with `name` and options of `sf.grid`, such as `rho` and `sigma_min`; None: the sampler's own.
        ends_at: the level κ = σ/α at which the run ends; 0 for data.
        limit, percentile: x̂_0 is held as by `sf.Thresholding`; None: to nothing.
        lowers: the order falls at the last steps, as by `lowered`.
        expected: the figure that was published; None: none that could be looked up.
        tolerance: the share of it that a figure may be off by. source: where it stands, or how it was found.
        measured: the figures of the blocks of a run of this library; none: nobody has run it.
        differs: what the published run did otherwise; then a figure that is off says nothing of the sampler.
    """

    sampler: str
    nfe: int
    grid: str | Mapping[str, Any] | None = None
    ends_at: float = 0.0
    limit: float | None = None
    percentile: float | None = None
    lowers: bool = False
    expected: float | None = None
    tolerance: float = 0.0
    source: str = ""
    measured: tuple[float, ...] = ()
    differs: str = ""

    @property
    def label(self) -> str:
        """The sampler, its grid, and the level where it ends if that is not 0."""
        name = self.grid.get("name") if isinstance(self.grid, Mapping) else self.grid
        return self.sampler + (f"@{name}" if name else "") + (f" to {self.ends_at:g}" if self.ends_at else "")

    @property
    def folder(self) -> str:
        """The name of a folder for its samples."""
        return f"{re.sub(r'[^A-Za-z0-9.+=-]+', '-', self.label).strip('-')}-nfe{self.nfe}"

    @property
    def figure(self) -> float | None:
        """What a run is compared to: the published figure, or else the one that was measured."""
        return sum(self.measured) / len(self.measured) if self.expected is None and self.measured else self.expected

    def asked(self, path: GaussianPath) -> dict[str, Any]:
        """The run as keywords of `solve` and `generate`: sampler, its options, and times on this path."""
        name, options, own = parse(self.sampler)
        asked = {**options, "sampler": name, "grid": own or self.grid}
        if isinstance(self.grid, str) and self.grid in EXPLICIT:
            return asked | {"grid": EXPLICIT[self.grid](path, self.nfe)}
        stop = sigmas(path, [self.ends_at])[0] if self.ends_at else 0.0
        if self.lowers:
            chosen = get_sampler(name, **options)
            assert isinstance(chosen, Linear) and isinstance(self.grid, Mapping)
            return {"sampler": lowered(chosen, path, grid(path, self.nfe, stop=stop, **self.grid))}
        if isinstance(self.grid, Mapping):
            asked["grid"] = functools.partial(_times, dict(self.grid))
        return asked | {"nfe": self.nfe, "stop": stop}


def _times(options: dict[str, Any], path: GaussianPath, steps: int, start: float, stop: float) -> tuple[float, ...]:
    """A grid with options, as a rule."""
    return grid(path, steps, start=start, stop=stop, **options)


@dataclass(frozen=True)
class File:
    """A file that the package does not bring.

    Attributes:
        name: it has. url: where it lies. hub: a repository of the Hugging Face hub, for a folder with its files in the place
            of a file. sha256: its hash, or the beginning of it; "": nobody has checked it.
    """

    name: str
    url: str = ""
    hub: str = ""
    sha256: str = ""

    def place(self, folder: Path) -> Path | None:
        """Where it is: in the folder, or fetched from the hub, where `huggingface_hub` is installed; None if nowhere."""
        if (place := folder / self.name).exists():
            return place
        if not self.hub:
            return None
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(self.hub, allow_patterns=["*.json", "diffusion_pytorch_model.*"]))
        except (ImportError, OSError, ValueError):  # not installed, or no way to the hub
            return None

    def checked(self, place: Path) -> str:
        """Its hash, of a folder that of the weights.

        Raises:
            ValueError: it is not the one that is stated.
        """
        if place.is_dir():
            weights = sorted(place.glob("diffusion_pytorch_model.*"), key=lambda file: file.suffix != ".safetensors")
            if not weights:
                raise ValueError(f"{place} holds no diffusion_pytorch_model.safetensors or .bin")
            place = weights[0]
        with open(place, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if not found.startswith(self.sha256):
            raise ValueError(f"{place} has the sha256 {found}, and {self.sha256} is stated: it is another file")
        return found

    def __str__(self) -> str:
        if self.hub:
            return f"{self.name}, a folder with the files of https://huggingface.co/{self.hub}"
        return f"{self.name} from {self.url}"


@dataclass(frozen=True)
class Reference:
    """A network with figures that are known.

    Attributes:
        name: of its TOML file. title: in a line. notes: what is to be known of the figures.
        network: `kind`, one of `KINDS`, and what that kind needs. shape: of a sample.
        classes: how many the network knows; seed s is told s mod classes, so that blocks have all as often; 0 for none.
        data: what samples are compared to, a name of `sf.data`; "" if `files` has statistics. features: where.
        n: samples in a block, which the figures are of. blocks: how many. batch: samples in a network call.
        format: of the samples, one of `FORMATS`. files: by what they are, `network`, `statistics`, `features`.
    """

    name: str
    title: str
    network: Mapping[str, Any]
    shape: tuple[int, ...]
    features: str
    n: int
    cells: tuple[Cell, ...]
    notes: str = ""
    classes: int = 0
    data: str = ""
    blocks: int = 3
    batch: int = 250
    format: str = "safetensors"
    files: Mapping[str, File] = field(default_factory=dict)

    def chosen(self, nfe: Iterable[int] | None = None, samplers: Iterable[str] | None = None) -> tuple[Cell, ...]:
        """The cells at these budgets, of these samplers; by itself all. A budget that has no figure is a cell without one.

        Raises:
            ValueError: it has no such sampler.
        """
        known = list(dict.fromkeys(cell.sampler for cell in self.cells))
        wanted = known if samplers is None else [*samplers]
        for name in wanted:
            if name not in known:
                raise ValueError(f"the reference {self.name!r} has no sampler {name!r}{check.suggestion(name, known)}")
        cells = [cell for cell in self.cells if cell.sampler in wanted]
        if nfe is None:
            return tuple(cells)
        budgets, rows = [check.whole("nfe", n) for n in nfe], dict[str, dict[int, Cell]]()
        for cell in cells:
            rows.setdefault(cell.label, {})[cell.nfe] = cell
        return tuple(row.get(n) or _without(next(iter(row.values())), n) for row in rows.values() for n in budgets)


def _without(cell: Cell, nfe: int) -> Cell:
    """The cell at a budget that has no figure."""
    return replace(cell, nfe=nfe, expected=None, measured=(), source="")


HERE = Path(__file__).parent


def names() -> list[str]:
    """Of the references that ship with the package."""
    return sorted(file.stem for file in HERE.glob("*.toml"))


def load(name: str | Path) -> Reference:
    """A reference by name, or a TOML file of your own like the shipped ones.

    Raises:
        ValueError: nothing has the name, or the file says what is not allowed. FileNotFoundError: no such file.
    """
    if name in names():
        file = HERE / f"{name}.toml"
    elif Path(name).suffix == ".toml":
        file = Path(name)
    else:
        raise ValueError(f"no reference is called {str(name)!r}{check.suggestion(str(name), names())}; or give a TOML file")
    try:
        read = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"reference {file} is no TOML: {error}") from error
    try:
        return _reference(file.stem, read)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"reference {file}: {error}") from error


def _reference(name: str, read: dict[str, Any]) -> Reference:
    allowed = {"name", *read} & {one.name for one in fields(Reference)} | {"tolerance"}
    if other := set(read) - allowed:
        raise ValueError(f"{min(other)!r} is nothing that a reference has")
    share, rows = read.pop("tolerance", 0.0), read.pop("cells")
    check.one_of("format", read.get("format", FORMATS[0]), FORMATS)
    files = {what: File(**one) for what, one in read.pop("files", {}).items()}
    cells = tuple(cell for row in rows for cell in _cells({"tolerance": share, **row}))
    return Reference(name, shape=tuple(read.pop("shape")), files=files, cells=cells, **read)


def _cells(row: dict[str, Any]) -> Iterable[Cell]:
    """A row of a file, a sampler, as a cell for each budget that it has figures of, or names."""
    expected, measured = ({int(n): value for n, value in row.pop(what, {}).items()} for what in ("expected", "measured"))
    for nfe in dict.fromkeys((*expected, *measured, *row.pop("nfe", ()))):
        yield Cell(nfe=nfe, expected=expected.get(nfe), measured=tuple(measured.get(nfe, ())), **row)
