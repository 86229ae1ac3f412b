"""Plans that are kept in files, and those that lie beside a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import fields, replace
from pathlib import Path

from scoreflow._core.check import meant
from scoreflow._core.gaussian import GaussianPath
from scoreflow._run.schedule import Schedule
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import SAMPLERS, Linear, Sampler, get_sampler
from scoreflow._score.fingerprint import identity
from scoreflow._score.model import ScoreModel

PREFIX = "plan:"
"""Of a file, or of a folder of `tune`, in the place of a sampler's name."""


def load_plan(file: str | Path, *, anyway: bool = False) -> Plan:
    """A plan from a file that `Tuned.save` or `Plan.to_json` wrote.

    Args:
        anyway: for any model on its path, though it was fitted to one.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file. ValueError: it holds no plan.
    """
    try:
        plan = Plan.from_json(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} holds no plan, such as Plan.to_json writes: {error}") from error
    return plan.anyway() if anyway else plan


def is_kept(sampler: object) -> bool:
    """Whether it says `plan:` and a file or folder."""
    return isinstance(sampler, str) and sampler.startswith(PREFIX)


def kept(sampler: str, schedule: Schedule) -> tuple[Plan, Schedule]:
    """The plan that `plan:FILE` or `plan:FOLDER` means at this budget, and what else was asked for.

    Raises:
        FileNotFoundError: no such file or folder, or none for the budget in it. ValueError: a plan for another budget.
    """
    place, nfe = _place(sampler), schedule.nfe
    if place.is_dir():
        files = _plans_in(place)
        there = f"it has plans for {', '.join(map(str, files))}" if files else "it has none, as plan-6.json of tune"
        if nfe is None:
            raise ValueError(f"{sampler!r} is a folder, and nfe says which plan of it: {there}")
        if nfe not in files:
            raise FileNotFoundError(f"{sampler!r} has no plan for nfe={nfe}; {there}")
        place = files[nfe]
    plan = load_plan(place)
    if nfe not in (None, made := _budget(plan)):
        raise ValueError(f"{sampler!r} is a plan for {made} evaluations, got nfe={nfe}: another budget needs another plan")
    return plan, replace(schedule, nfe=None)


def budgets(sampler: str) -> tuple[int, ...]:
    """Those that `plan:FILE` or `plan:FOLDER` has a plan for.

    Raises:
        FileNotFoundError: no such file or folder. ValueError: the file holds no plan.
    """
    place = _place(sampler)
    return tuple(_plans_in(place)) if place.is_dir() else (_budget(load_plan(place)),)


def _place(sampler: str) -> Path:
    text = sampler.removeprefix(PREFIX)
    place = Path(text).expanduser()
    if text and place.exists():
        return place
    before = re.split(r"[(@]", text)[0]
    if before not in ("", text) and Path(before).expanduser().exists():
        raise ValueError(
            f"{sampler!r}: a plan has its times and weights, and takes no grid or options: give {PREFIX + before!r}"
        )
    near = meant(place.name, (one.name for one in place.parent.glob("*")))
    raise FileNotFoundError(f"{sampler!r}: there is no file or folder {text!r}{near}")


def _plans_in(folder: Path) -> dict[int, Path]:
    """The files that `Tuned.save` wrote, by budget."""
    numbered = ((file.stem.removeprefix("plan-"), file) for file in folder.glob("plan-*.json"))
    return dict(sorted((int(nfe), file) for nfe, file in numbered if nfe.isdecimal()))


def names(samplers: Iterable[str]) -> dict[str, str]:
    """What each is called: of plans `plan:` and the last name of the path, or as many as tell them apart."""
    paths = {one: Path(one.removeprefix(PREFIX)).parts for one in samplers if is_kept(one)}
    out = {one: one for one in samplers}
    for one, parts in paths.items():
        for k in range(1, len(parts)):
            if all(other[-k:] != parts[-k:] for name, other in paths.items() if name != one):
                out[one] = PREFIX + "/".join(parts[-k:])
                break
    return out


def _budget(plan: Plan) -> int:
    return plan.nfe if plan.fit is None else plan.fit.nfe


def on_path(plan: Plan, path: GaussianPath, schedule: Schedule) -> Plan:
    """The plan on its path, once it is sure that this is its path and that no other times were asked for.

    Raises:
        ValueError: they were, or it was made for another path.
    """
    own = {"start": plan.times[0], "stop": plan.times[-1]}
    for option in fields(schedule):
        if (value := getattr(schedule, option.name)) not in (option.default, own.get(option.name)):
            raise ValueError(f"a plan has its times, but {option.name}={value} was given too")
    if plan.path != repr(path):
        raise ValueError(f"the plan was made for {plan.path}, the model stands on {path}")
    return replace(plan, path_object=path)


def made_by(plan: Plan, model: ScoreModel) -> Sampler:
    """The sampler that made a plan; one without rows if none that is registered did.

    Raises:
        ValueError: it was fitted to another model.
    """
    fit = plan.fit
    if fit is not None and fit.model and fit.model != (found := identity(model)):
        raise ValueError(
            f"the plan was fitted to {fit.described} ({fit.model}), and this model is {model!r} ({found}): fit it anew with "
            "tune, or give plan.anyway()"
        )
    if plan.sampler not in SAMPLERS:  # the rows are the plan's: those that `tune` fitted, or of code that was read back
        return Linear(name=plan.sampler, cites=fit.cites if fit is not None else ())
    return get_sampler(plan.sampler, **dict(plan.options))


def beside(model: ScoreModel, schedule: Schedule, told: Collection[str]) -> Plan | None:
    """The plan among `model.plans` that was fitted to this very model and budget, told conditions of these names; or None."""
    if schedule.grid is not None or schedule.denoise:
        return None
    ends = (schedule.start, schedule.stop)
    for plan in model.plans:
        fit = plan.fit
        if fit is not None and (fit.nfe, {*fit.conditions}) == (schedule.nfe, {*told}) and fit.ends == ends:
            return plan if fit.model == identity(model) else None
    return None
