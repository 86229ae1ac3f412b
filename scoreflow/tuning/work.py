"""The stages of tuning: the ODE's answers, samplers that are there, fits, the decision; each kept in a folder."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreflow._run.solve import plan as sampler_plan
from scoreflow._samplers.plan import Plan
from scoreflow.tuning.decide import interval, upper
from scoreflow.tuning.fit import FEW, Asked, Fitted, Start, descend, student
from scoreflow.tuning.problem import Part, Problem, errors
from scoreflow.tuning.result import Tuned
from scoreflow.tuning.screen import Candidate, kept, read, screened

CITES = ("frankel2025s4s", "tong2024ld3")
SCREEN_SHARE, LONG_SHARE = 0.25, 0.95
"""Of the time, when the candidates are to be done, and the fits."""
SHORT = 4
"""A first fit has this fraction of the iterations, and few states; the best of them goes on with all."""
QUANTILE = 0.9
Report = Callable[[str], None]


def write(file: Path, text: str) -> None:
    """Whole or not at all."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


class Work:
    """The stages of a problem, each kept in the folder."""

    def __init__(
        self, problem: Problem, asked: Asked, analytic: bool, named: list[str] | None, starts: int, budget_s: float | None,
        folder: Path | None, executor: Executor | None,
    ) -> None:  # fmt: skip
        self.problem, self.asked, self.analytic, self.named, self.starts = problem, asked, analytic, named, starts
        self.seconds, self.folder, self.executor = budget_s, folder, executor
        self.parts = dict[str, tuple[Part, int]]()
        self.before: Fitted | None = None  # of the budget before

    def part(self, name: str) -> tuple[Part, int]:
        """A part with the ODE's answers, and the evaluations that they took."""
        from safetensors.torch import load_file, save_file

        if name not in self.parts:
            x, told = self.problem.states(name)
            file = None if self.folder is None else self.folder / f"ode-{name}.safetensors"
            if file is not None and file.is_file():
                kept_states = load_file(file)
                target, nfe = kept_states["target"].to(x), int(kept_states["nfe"])
            else:
                (target,), nfe = self.problem.ode(x, told)
                if file is not None:
                    save_file({"target": target.contiguous(), "nfe": torch.tensor(nfe)}, file)
            self.parts[name] = Part(x, told, target), nfe
        return self.parts[name]

    def budget(self, nfe: int, report: Report) -> Tuned:
        """The result at one budget."""
        known = None if self.folder is None else self.folder / f"tuned-{nfe}.json"
        if known is not None and known.is_file():
            for _ in range(4):
                report("kept")
            done = Tuned.load(known)
            self.before = self.kept_fit(nfe, len(done.starts) - 1)  # the last is the one that went on
            return done
        began = time.monotonic()
        report("the ODE's answers")
        (part, cost), (deciding, more) = self.part("fit"), self.part("validate")
        v = float(part.target.double().square().mean()) if self.analytic else None
        report("samplers that are there")
        found, screened_count, taken = self.screen(nfe, part, v, began)
        best = found[0]
        asked = self.asked._replace(scale=max(best.median, 1e-9))
        report("fits")
        fits = self.fits(nfe, self.begins(found, v), asked, part, began)
        report("decision")
        self.before = good = fits[-1]
        one = student(self.problem, good.start, asked)
        one.load(good.state)
        fit = self.problem.fit(nfe, CITES)
        fitted = one.plan(fit=fit)
        ours, theirs = (self.off(plan, deciding) for plan in (fitted, best.plan))
        validation = {
            "median": upper(ours, theirs, 0.5), "quantile": upper(ours, theirs, QUANTILE),
        }  # fmt: skip
        accepted = all(high < 1 for _, high in validation.values())
        says = ", ".join(f"{name} {ratio:.3g} of it (at most {high:.3g})" for name, (ratio, high) in validation.items())
        against = f"{best.name}, the best of {screened_count} samplers on their grids"
        reason = (
            f"the fitted plan is better than {against}: {says}" if accepted
            else f"{against}, stays: the fitted plan is not surely better, {says}"
        )  # fmt: skip
        plan = fitted if accepted else replace(best.plan, fit=fit._replace(cites=()))
        auto = next((one for one in found if one.name == "auto"), best)
        test, more_test = self.test(plan, best.plan, auto.plan)
        total = sum((cost, more, taken, more_test, *(fit.nfe for fit in fits)))
        done = Tuned(
            plan, nfe, accepted, reason, tuple(one.line for one in found), screened_count,
            tuple({"name": f.start.name, "analytic": f.start.v, "loss": f.loss, "evaluations": f.nfe, "seconds": f.seconds}
                  for f in fits),
            tuple(tuple(f.curve) for f in fits), validation, test,
            {"evaluations": total, "seconds": time.monotonic() - began},
        )  # fmt: skip
        if self.folder is not None:
            done.save(self.folder)
        return done

    def screen(self, nfe: int, part: Part, v: float | None, began: float) -> tuple[list[Candidate], int, int]:
        """The candidates, from the folder if they are there."""
        file = None if self.folder is None else self.folder / f"screen-{nfe}.json"
        if file is not None and file.is_file():
            data = json.loads(file.read_text(encoding="utf-8"))
            return read(data["found"]), data["count"], data["taken"]
        until = math.inf if self.seconds is None else began + SCREEN_SHARE * self.seconds
        found, count, taken = screened(self.problem, nfe, part, v, until, self.named, self.executor)
        if not found:
            raise ValueError(f"no deterministic sampler made of rows runs {self.problem.model!r} within nfe={nfe}")
        if file is not None:
            write(file, json.dumps({"found": kept(found), "count": count, "taken": taken}))
        return found, count, taken

    def begins(self, found: Sequence[Candidate], v: float | None) -> list[Start]:
        """The times of the best candidates that ask once a step, no two alike; the first again with even weights, and with the
        exact first answer; and the fit of the budget before with more steps."""
        path, out = self.problem.model.path, list[Start]()
        single = [
            one for one in found
            if one.plan.analytic is None and all(step.evaluates and len(step.stages) == 1 for step in one.plan.steps)
            and path.alpha(one.plan.times[0]) >= path.alpha(self.problem.start)
        ]  # fmt: skip
        for one in single or [self.even(len(found[0].plan.evaluation_times))]:
            times = one.plan.times
            if all(max(abs(a - b) for a, b in zip(times, other.times, strict=False)) > 1e-3 or len(times) != len(other.times)
                   for other in out):  # fmt: skip
                out.append(Start(one.name, times))
        out, steps = out[: self.starts], len(out[0].times)
        if self.asked.weights:
            out.append(out[0]._replace(name=f"{out[0].name}, even weights", even=True))
        if v is not None and self.problem.model.time != "label":
            times = out[0].times
            middle = path.time((path.lam(times[1]) + path.lam(times[2])) / 2) if len(times) > 3 else None
            if middle is not None:
                out.append(Start(f"{out[0].name}, first answer exact", (*times[:2], middle, *times[2:]), v))
        if self.before is not None and self.problem.model.time != "label":
            times, v, numbers = self.before.start.times, self.before.start.v, self.before.state
            while True:
                start = Start("the plan before, with more steps", times, v, state=numbers)
                shorter = student(self.problem, start, self.asked)
                shorter.load(numbers)
                if shorter.steps >= steps - (v is None):
                    break
                times, numbers = shorter.grown()
            out.append(start)
        return out

    def even(self, steps: int) -> Candidate:
        """Times of the grid "ode", if no candidate asks once a step."""
        made = sampler_plan(
            "ddim", self.problem.model.path, steps, grid="ode", start=self.problem.start, stop=self.problem.stop
        )
        return Candidate("ddim@ode", made, math.nan, math.nan, 0)

    def fits(self, nfe: int, begins: Sequence[Start], asked: Asked, part: Part, began: float) -> list[Fitted]:
        """A short fit of each start, and a long one that goes on from the best; those in the folder are not made again."""
        short, last = asked._replace(iterations=asked.iterations // SHORT), len(begins)
        few = part.of(torch.arange(min(FEW, len(part)), device=part.x.device))

        def until(share: float) -> float:
            if self.seconds is None:
                return math.inf
            now = time.monotonic()
            return now + share * max(began + LONG_SHARE * self.seconds - now, 0.0)

        done = {k: fit for k, begin in enumerate(begins) if (fit := self.kept_fit(nfe, k, begin)) is not None}
        left = [k for k in range(last) if k not in done]
        if self.executor is None:
            for i, k in enumerate(left):
                ends = until(1 / (SHORT + len(left) - i))
                done[k] = self.keep(nfe, k, descend(self.problem, begins[k], short, few, ends))
        else:
            ends = until(1 / (1 + SHORT))
            runs = {k: self.executor.submit(descend, self.problem, begins[k], short, few, ends) for k in left}
            done |= {k: self.keep(nfe, k, run.result()) for k, run in runs.items()}
        best = min((done[k] for k in range(last)), key=lambda fit: fit.loss)
        if (long := self.kept_fit(nfe, last, best.start)) is None:
            call = (self.problem, best.start, asked, part, until(1.0), best.state)
            long = self.keep(
                nfe, last, descend(*call) if self.executor is None else self.executor.submit(descend, *call).result()
            )
        return [*(done[k] for k in range(last)), long]

    def keep(self, nfe: int, k: int, fit: Fitted) -> Fitted:
        """Into the folder."""
        from safetensors.torch import save_file

        if self.folder is not None:
            line = {**fit.start._asdict(), "state": None, "loss": fit.loss, "curve": fit.curve, "nfe": fit.nfe,
                    "seconds": fit.seconds}  # fmt: skip
            file = self.folder / f"fit-{nfe}-{k}.safetensors"
            part = file.with_suffix(f".{os.getpid()}.part")
            save_file({name: value.contiguous() for name, value in fit.state.items()}, part, {"fit": json.dumps(line)})
            part.replace(file)
        return fit

    def kept_fit(self, nfe: int, k: int, begin: Start | None = None) -> Fitted | None:
        """What the folder has of it, if it began there."""
        from safetensors import safe_open

        if self.folder is None or not (file := self.folder / f"fit-{nfe}-{k}.safetensors").is_file():
            return None
        with safe_open(file, "pt") as opened:
            line = json.loads(opened.metadata()["fit"])
            state = {name: opened.get_tensor(name) for name in opened.keys()}
        start = Start(line["name"], tuple(line["times"]), line["v"], line["even"])
        if begin is not None and start != begin._replace(state=None):
            return None
        curve = [(int(i), float(v)) for i, v in line["curve"]]
        return Fitted(begin or start, state, line["loss"], curve, line["nfe"], line["seconds"])

    def off(self, plan: Plan, part: Part) -> Tensor:
        """The errors of a plan on a part."""
        return errors(self.problem.run(plan, part.x, part.told)[0], part.target)

    def test(self, plan: Plan, best: Plan, auto: Plan) -> tuple[dict[str, Any], int]:
        """The figures of the test seeds, and the evaluations."""
        part, nfe = self.part("test")
        off = {name: self.off(one, part) for name, one in (("returned", plan), ("best", best), ("auto", auto))}
        figures: dict[str, Any] = {
            name: {
                "median": float(e.median()), "quantile": float(e.quantile(QUANTILE)), "rms": float(e.square().mean().sqrt()),
                "seeds": len(e),
            }
            for name, e in off.items()
        }  # fmt: skip
        ratio = interval(off["returned"], off["best"], 0.5)
        return {**figures, "ratio": ratio}, nfe + 3 * plan.nfe * len(part)
