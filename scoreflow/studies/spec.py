"""What one cell of a study runs: a sampler with its options, a grid, a budget, and the seed of a block."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from scoreflow._core.aliases import plain
from scoreflow._core.check import listed, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import grid as make_grid
from scoreflow._run.auto import AUTO
from scoreflow._run.kept import budgets as kept_budgets
from scoreflow._run.kept import is_kept, kept
from scoreflow._run.schedule import Schedule
from scoreflow._run.solve import Prepared, prepare
from scoreflow._samplers.step import Sampler, get_sampler, resolve
from scoreflow._score.model import ScoreModel

TYPED = re.compile(r"^(?P<name>.*?)(?:\((?P<options>[^()]*(?:\([^()]*\)[^()]*)*)\))?(?:@(?P<grid>[\w-]+))?$", re.DOTALL)


MAPPED = ("flow-map", "consistency")
"""The samplers that run on the flow map of a study, where it has one."""


class Spec(NamedTuple):
    """A sampler at a budget.

    Attributes:
        sampler: its name and options as typed, `ddim(eta=0.5)`, or `plan:folder`.
        grid: a grid's name; None for the sampler's own.
        nfe, steps: the budget; both None for a sampler that goes by a tolerance.
    """

    sampler: str
    grid: str | None = None
    nfe: int | None = None
    steps: int | None = None

    def __str__(self) -> str:
        return self.label + (f", nfe={self.nfe}" if self.nfe else "") + (f", {self.steps} steps" if self.steps else "")

    @property
    def label(self) -> str:
        """What is compared across budgets: the sampler, and its grid where one was named."""
        return self.sampler + (f"@{self.grid}" if self.grid else "")

    @property
    def budget(self) -> dict[str, int]:
        """As keywords of `solve`."""
        return {name: n for name, n in (("nfe", self.nfe), ("steps", self.steps)) if n is not None}

    @property
    def size(self) -> int:
        """The budget as a number; 0 for none."""
        return self.nfe or self.steps or 0

    def made(self) -> str | Sampler:
        """The sampler; "auto" is chosen, and a plan is read, by `solve`."""
        if is_kept(self.sampler):
            return self.sampler
        name, options, _ = parse(self.sampler)
        return AUTO if name == AUTO and not options else get_sampler(name, **options)

    @property
    def mapped(self) -> bool:
        """Whether its name, as typed, is one of `MAPPED`."""
        return not is_kept(self.sampler) and plain(parse(self.sampler)[0]) in map(plain, MAPPED)

    def noisy(self, path: GaussianPath) -> bool:
        """Whether it draws noise after the prior; "auto" draws none."""
        if is_kept(self.sampler):
            return kept(self.sampler, Schedule(nfe=self.nfe))[0].noise_count > 0
        sampler = self.made()
        return isinstance(sampler, Sampler) and sampler.stochastic_on(path)

    def prepared(self, model: ScoreModel, start: float = 1.0, stop: float = 0.0) -> Prepared:
        """Sampler, times and rows for a model.

        Raises:
            ValueError, FileNotFoundError: as `solve`.
        """
        return prepare(model, self.made(), Schedule(self.steps, self.nfe, self.grid, start, stop), {})

    def content(self, model: ScoreModel, start: float = 1.0, stop: float = 0.0) -> str:
        """All that its result depends on beside the model's answers and the seed, as text."""
        try:
            run = self.prepared(model, start, stop)
            return json.dumps([repr(run.sampler), run.times]) if run.plan is None else run.plan.to_json()
        except (ValueError, FileNotFoundError) as error:  # it will fail, and be recorded
            return f"{self}: {error}"


def parse(text: str) -> tuple[str, dict[str, Any], str | None]:
    """`name(option=value, …)@grid` as name, options and grid; a value is a Python literal or a bare word.

    Raises:
        ValueError: options that are not name=value.
    """
    found = TYPED.match(text.strip())
    assert found is not None
    try:
        call = ast.parse(f"f({found['options'] or ''})", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        options = {str(word.arg): _value(word.value) for word in call.keywords}
    except (SyntaxError, AssertionError, ValueError) as error:
        raise ValueError(f"sampler {text!r}: options are name=value, such as ddim(eta=0.5)") from error
    return found["name"], options, found["grid"]


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    return ast.literal_eval(node)


def split(text: str) -> list[str]:
    """A list typed with commas; those inside parentheses are part of an entry."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip()]


def typed(sampler: str | Sampler) -> str:
    """A sampler as text that `parse` reads.

    Raises:
        ValueError: an option that is no number or text, such as a function.
    """
    if isinstance(sampler, str):
        return sampler.strip()
    if not isinstance(sampler, Sampler):
        raise TypeError(f"samplers must be names or samplers of get_sampler, got {sampler!r}")
    defaults = get_sampler(sampler.name).options
    options = {name: value for name, value in sampler.options.items() if value != defaults[name]}
    for name, value in options.items():
        if not isinstance(value, str | int | float | tuple | None):
            raise ValueError(
                f"a study keeps its samplers as text, and {name}={value!r} of {sampler.name!r} is none: register it"
            )
    inside = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return sampler.name + (f"({inside})" if inside else "")


def specs(
    samplers: str | Sampler | Iterable[str | Sampler],
    nfe: int | Iterable[int] | None,
    steps: int | Iterable[int] | None,
    grids: str | Iterable[str] | None,
    path: GaussianPath,
) -> list[Spec]:
    """Every sampler at every budget on every grid; one that goes by a tolerance once, a plan at the budgets that it is for.
    Each comes once.

    Raises:
        ValueError: an empty list, or names, options or grids that are wrong: all of them are reported at once.
    """
    entries = listed(samplers)
    if (nfe is None) == (steps is None):
        raise ValueError(f"give nfe or steps, one of them: got nfe={nfe}, steps={steps}")
    name, counts = ("nfe", listed(nfe)) if nfe is not None else ("steps", listed(steps))
    named = None if grids is None else listed(grids)
    for what, values in (("samplers", entries), (name, counts), ("grids", named)):
        if values is not None and not values:
            raise ValueError(f"{what} is empty: give one or more")
    budgets = [whole(name, n) for n in counts]
    wrong: list[str] = []
    found: list[Spec] = []
    for grid in named or ():
        _try(wrong, lambda grid=grid: make_grid(path, 2, grid))
    for entry in entries:
        if (text := _try(wrong, lambda entry=entry: typed(entry))) is None:
            continue
        if is_kept(text):
            found += _try(wrong, lambda text=text: _of_plan(text, name, budgets)) or []
            continue
        if (parts := _try(wrong, lambda text=text: _parsed(text, path))) is None:
            continue
        label, own, tolerance = parts
        for on in (own,) if own else tuple(named) if named else (None,):
            found += [Spec(label, on)] if tolerance else [Spec(label, on, **{name: n}) for n in budgets]
    if wrong:
        raise ValueError("; ".join(wrong))
    return list(dict.fromkeys(found))


def _of_plan(text: str, name: str, budgets: list[int]) -> list[Spec]:
    """A plan at those of the budgets that it is for; it has its own times, so that no grid goes with it."""
    if name != "nfe":
        raise ValueError(f"{text!r} is for a budget of evaluations: give nfe, not {name}")
    there = kept_budgets(text)
    if not (own := [Spec(text, nfe=n) for n in budgets if n in there]):
        raise ValueError(
            f"{text!r} has plans for nfe={', '.join(map(str, there)) or 'none'}, and none for {', '.join(map(str, budgets))}"
        )
    return own


def _parsed(text: str, path: GaussianPath) -> tuple[str, str | None, bool]:
    """The label without its grid, the grid, whether a tolerance rules; all checked."""
    name, options, grid = (text, {}, None) if _known(text) else parse(text)
    label = text if grid is None else text.rpartition("@")[0]
    if grid is not None:
        make_grid(path, 2, grid)
    if name == AUTO and not options:
        return label, grid, False
    return label, grid, get_sampler(name, **options).evaluations(path, (1.0, 0.5, 0.0)) is None


def _known(text: str) -> bool:
    try:
        resolve(text)
    except ValueError:
        return False
    return True


def _try(wrong: list[str], call: Any) -> Any:
    try:
        return call()
    except (ValueError, TypeError, FileNotFoundError) as error:
        wrong.append(str(error))
        return None
