"""What is typed: the options that several commands have, and how their words are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from scoreflow._catalogue import catalogue


def named(text: str, kind: str, listed: bool = False, of: Callable[..., Any] = typer.Option) -> Any:
    """An option, or an argument, that takes a name, or several with commas between; the shell completes it, or the last."""

    def begun(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if listed else ("", "", incomplete)
        known = ["auto", *(line.name for line in catalogue()["samplers"])] if kind == "samplers" else catalogue()[kind]
        return [before + comma + name for name in known if name.startswith(last)]

    return of(help=text, autocompletion=begun)


def known(kind: str) -> str:
    """The names of a kind, for help."""
    return ", ".join(catalogue()[kind])


Model = Annotated[str, typer.Option(help="zoo:digits, oracle:ring, run:folder, file.py:function or package.module:function.")]
Shape = Annotated[str | None, typer.Option(help="Of one sample, if the function gives a ScoreModel: 2, or 1,8,8.")]
Nfe = Annotated[int | None, typer.Option(help="A budget of network evaluations.")]
Steps = Annotated[int | None, typer.Option(help="Steps, instead of a budget.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def shape_of(text: str | None) -> tuple[int, ...] | None:
    """`1,8,8` as a shape."""
    return None if text is None else tuple(numbers("shape", text))


def options_of(pairs: list[str]) -> dict[str, Any]:
    """`name=value` as keywords; a value is a number, true, false or null as in JSON, else text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"option must be name=value, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def sampler_of(text: str) -> tuple[str, dict[str, Any], str | None]:
    """A sampler as typed, `ddim(eta=0.5)@karras` or `plan:file`: its name, its options and its grid."""
    import scoreflow as sf
    from scoreflow._core.check import options as check_options
    from scoreflow._run.auto import AUTO
    from scoreflow._run.kept import is_kept
    from scoreflow.studies.spec import parse

    name, options, grid = (text, {}, None) if is_kept(text) else parse(text)
    if name == AUTO:
        check_options("sampler 'auto'", options, ("analytic",))
    elif not is_kept(name):  # options are the sampler's, and no other keyword of `solve`
        sf.get_sampler(name, **options)
    return name, options, grid


def numbers(name: str, text: str) -> list[int]:
    """`5,6,8` as whole numbers."""
    from scoreflow.studies.spec import split

    try:
        return [int(part) for part in split(text)]
    except ValueError:
        raise ValueError(f"{name} must be whole numbers with commas between, got {text!r}") from None
