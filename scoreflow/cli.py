"""The command line: what samplers there are, what a run would do, how to cite it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from scoreflow.chain import DDPMChain
from scoreflow.cite import cite as bibtex
from scoreflow.path import GaussianPath
from scoreflow.sde import VESDE, VPSDE, Flow, SubVPSDE
from scoreflow.solve import plan as lay_out
from scoreflow.table import samplers as table

PATHS: dict[str, Callable[[], GaussianPath]] = {
    "vp": VPSDE,
    "cosine": lambda: VPSDE.from_betas(DDPMChain.cosine().beta),
    "ddpm": lambda: VPSDE.from_betas(DDPMChain.linear().beta),
    "sub-vp": SubVPSDE,
    "ve": VESDE,
    "flow": Flow,
}
"""Paths by name; ddpm and cosine are the published chains of 1000 steps."""

app = typer.Typer(
    help="Samplers of diffusion models, swapped by name.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


@app.command()
def samplers(
    as_json: AsJson = False, markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False
) -> None:
    """Every sampler: order, evaluations a step, noise, memory, options, reference."""
    lines = table()
    printed = lines.markdown if markdown else str(lines)
    typer.echo(json.dumps([line._asdict() for line in lines], indent=1) if as_json else printed)


@app.command()
def plan(
    sampler: Annotated[str, typer.Argument(help="A sampler's name, or auto.")],
    path: Annotated[str, typer.Option(help=f"One of {', '.join(PATHS)}.")] = "ddpm",
    nfe: Annotated[int | None, typer.Option(help="A budget of network evaluations.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, instead of a budget.")] = None,
    grid: Annotated[str | None, typer.Option(help="A grid's name.")] = None,
    start: Annotated[float, typer.Option(help="The first time.")] = 1.0,
    stop: Annotated[float, typer.Option(help="The last time.")] = 0.0,
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help="name=value, an option of the sampler.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every coefficient of a run, before it runs."""
    if path not in PATHS:
        raise ValueError(f"path must be one of {', '.join(PATHS)}, got {path!r}")
    rows = lay_out(sampler, PATHS[path](), steps, nfe=nfe, grid=grid, start=start, stop=stop, **_options(option or []))
    typer.echo(rows.to_json() if as_json else str(rows))


@app.command()
def cite(names: Annotated[list[str], typer.Argument(help="Samplers, or keys of works.")]) -> None:
    """BibTeX of the works that samplers rest on."""
    typer.echo(bibtex(*names))


def _options(pairs: list[str]) -> dict[str, Any]:
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


def main() -> None:
    """Run the command line; a mistake in what was typed is one line and exit code 2."""
    try:
        app()
    except (ValueError, TypeError) as error:
        typer.echo(f"scoreflow: {error}", err=True)
        sys.exit(2)
