"""The table of coefficients: it regenerates to the bit, has every sampler, and runs as the samplers do."""

import json

from typer.testing import CliRunner

import scoreflow as sf
from scoreflow import cli
from scoreflow._audit import conform
from scoreflow._core import NUMERICS
from scoreflow._core.path import PATHS
from scoreflow._samplers.step import SAMPLERS, VARIANTS, Linear, get_sampler


def test_it_regenerates_to_the_bit(tmp_path):
    first, second = (conform.write(tmp_path / name).read_bytes() for name in ("a.json", "b.json"))
    assert first == second
    said = json.loads(first)
    assert (said["schema"], said["version"]) == ("scoreflow-conformance", 1) and said["numerics"] == NUMERICS
    names = {name for name in (*SAMPLERS, *VARIANTS) if isinstance(get_sampler(name), Linear)}
    assert {run["sampler"] for run in said["runs"]} == names
    assert len(said["runs"]) + len(said["left_out"]) == len(names) * len(conform.CASES)


def test_its_numbers_are_the_plans():
    """Digit by digit, with the levels of the path; of noise its weights, by the draws of the step."""
    said = json.loads(json.dumps(conform.conformance()))
    for run in said["runs"][::11]:
        path = PATHS[run["path"]]()
        plan = sf.plan(run["sampler"], path, 5, grid=run["grid"])
        assert all((path.alpha(one["t"]), path.sigma(one["t"])) == (one["alpha"], one["sigma"]) for one in run["levels"])
        for step, own in zip(run["steps"], plan.steps, strict=True):
            assert (step["t"], step["s"], step["evaluates"]) == (own.t, own.s, own.evaluates)
            assert len(step["draws"]) == len(own.draws)
            for row, stage in zip(step["rows"], own.stages, strict=True):
                assert (row["to"], row["x"], row["m"]) == (stage.t, float(stage.row.x), [float(m) for m in stage.row.m])
                assert sum(z**2 for _, z in row["noise"]) == sum(float(z) ** 2 for _, z in stage.row.draws)
                assert all(k < max(1, len(own.draws)) for k, _ in row["noise"])


def test_the_command(tmp_path):
    told = CliRunner().invoke(cli.app, ["conform", "--out", str(tmp_path / "table.json")])
    assert told.exit_code == 0 and "samplers: " in told.output and (tmp_path / "table.json").is_file()
    wrong = CliRunner().invoke(cli.app, ["conform", "--out", str(tmp_path / "none" / "table.json")])
    assert isinstance(wrong.exception, FileNotFoundError)
