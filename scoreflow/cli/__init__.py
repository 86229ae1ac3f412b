"""The command line: what samplers there are, what a run would do, samples, plans fitted, studies, reports, citations."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from scoreflow._extras import named
from scoreflow.cli.again import reference
from scoreflow.cli.check import audit, conform
from scoreflow.cli.compare import report, study
from scoreflow.cli.describe import cite, plan, samplers, show
from scoreflow.cli.draw import sample
from scoreflow.cli.fit import tune
from scoreflow.cli.learn import pairs, train
from scoreflow.cli.many import measure

# torch takes a second or more to load. Help, completion and `samplers` do without; what needs it is imported by the commands.

app = typer.Typer(
    help="Samplers of diffusion models, swapped by name.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (samplers, show, plan, cite, sample, measure, tune, study, pairs, train, report, reference, audit, conform):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scoreflow {version('scoreflow')}, torch {version('torch')}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the versions.")
    ] = False,
) -> None:
    """Samplers of diffusion models, swapped by name."""


MISTAKES = ValueError, TypeError, FileNotFoundError, NotADirectoryError, IsADirectoryError


def main() -> None:
    """Run the command line; a mistake in what was typed is one line and exit code 2, anything else that fails 1."""
    try:
        with named():
            app()
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"scoreflow: {error}", err=True)
        sys.exit(2 if isinstance(error, MISTAKES) else 1)
