"""A name that is nearly right is answered by the nearest, at most three, and by what lists all; for every kind of name."""

import re
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_cli import run

import scoreflow as sf
from scoreflow import checkpoint
from scoreflow._core.aliases import ALIASES, GRID_ALIASES, plain
from scoreflow._core.check import meant
from scoreflow._core.grid import GRIDS
from scoreflow._samplers.step import SAMPLERS, VARIANTS
from scoreflow.studies.features import get_features

PATH = sf.VPSDE()
NET = sf.nets.MLP(2, width=8, classes=3).eval()
ALL = r" sf\.samplers\(\) lists all \(in a shell: scoreflow samplers\)"


CASES = {
    "sampler": (partial(sf.get_sampler, "dppm"), rf"'dppm'; did you mean dpm-2, ddpm or DPM2 a\?{ALL}$"),
    "a sampler's name elsewhere": (partial(sf.get_sampler, "sample_dpmp_2m"), rf"did you mean DPM\+\+ 2M, .*\?{ALL}$"),
    "signs do not matter": (partial(sf.get_sampler, "ER_SDEE"), r"did you mean er-sde, er-sde-3 or "),
    "auto": (partial(sf.plan, "atuo", PATH, nfe=5), rf"did you mean auto\?{ALL}"),
    "nothing near": (partial(sf.get_sampler, "zzz"), rf"no sampler is called 'zzz'\.{ALL}$"),
    "option": (partial(sf.get_sampler, "ddim", etaa=1), "has no option 'etaa'; it has eta, analytic; did you mean eta"),
    "value of an option": (partial(sf.get_sampler, "deis", variable="rhoo"), r"one of t, rho, got 'rhoo'; did you mean rho\?"),
    "grid": (partial(sf.grid, PATH, 5, "trailling"), r"did you mean trailing\b.*\? Known: .*uniform"),
    "a grid's name elsewhere": (partial(sf.grid, PATH, 5, "exponental"), "did you mean exponential"),
    "option of a grid": (
        partial(sf.grid, PATH, 5, "karras", rhoo=7),
        "has no option 'rhoo'; it has t_min, rho; did you mean rho",
    ),
    "prediction": (partial(sf.ScoreModel, NET, PATH, "epss"), r"one of eps, .*, got 'epss'; did you mean eps\?"),
    "time": (partial(sf.ScoreModel, NET, PATH, time="log_snr"), r"one of unit, .*, got 'log_snr'; did you mean log-snr"),
    "argument": (
        partial(sf.sample, sf.ScoreModel(NET, PATH, "x0"), (1, 2), "ddim", stps=5),
        r"'stps' is neither .* \(y\); did you mean steps",
    ),
    "work": (partial(sf.cite, "ho2020dppm"), rf"did you mean ho2020ddpm.*\?{ALL}; .*scoreflow show NAME, has the keys"),
    "metric": (partial(sf.studies.metrics.get_metric, "slicedw2"), r"did you mean sliced-w2\? Known: c2st, .*trajectory"),
    "features": (
        partial(get_features, "digit"),
        r"did you mean digits\? Known: .*incep",
    ),
    "data": (partial(sf.data.load, "mnits"), r"did you mean mnist or digits\? Known: .*photos"),
    "zoo": (partial(sf.studies.load, "zoo:digitss"), r"did you mean digits or digits-map\? Known: digits, digits-map, mnist"),
    "oracle": (partial(sf.studies.load, "oracle:rnig"), r"did you mean ring\? Known: .*white"),
    "option of an oracle": (partial(sf.studies.load, "oracle:ring(mode=3)"), r"it has modes, .*, path; did you mean modes\?"),
    "path": (partial(sf.studies.load, "oracle:ring(path=cosin)"), r"one of vp, .*, got 'cosin'; did you mean cosine\?"),
    "model without its kind": (
        partial(sf.studies.load, "digits"),
        r"got 'digits'; did you mean zoo:digits, zoo:digits-map or oracle:digits\?",
    ),
    "kind of model": (partial(sf.studies.load, "orcale:ring"), "cannot be loaded: .*; did you mean oracle:ring"),
    "network": (partial(checkpoint.make, "unet"), r"one of .*, got 'unet'; did you mean UNet\?"),
    "option of a network": (
        partial(checkpoint.make, "UNet", chanels=1),
        "UNet has no option 'chanels'; .*did you mean channels",
    ),
    "table of a run": (
        partial(sf.training.setup, "digits", changes={"recip.steps": 3}),
        r"'recip.steps'; did you mean recipe\?",
    ),
    "weighting": (partial(sf.training.Objective, weighting="minsnr"), r"got 'minsnr'; did you mean min-snr\?"),
}


@pytest.mark.parametrize("kind", CASES)
def test_nearest_and_where_all_are(kind):
    call, said = CASES[kind]
    with pytest.raises((ValueError, TypeError), match=said):
        call()


def test_at_most_three_and_the_right_one_among_them():
    """Of every name with two letters in the wrong order."""
    for known, also in (([*SAMPLERS, *VARIANTS], ALIASES), (GRIDS, GRID_ALIASES), (sf.studies.METRICS, ())):
        spelled = {plain(name) for name in (*known, *also)}
        for word in known:
            for i, (a, b) in enumerate(pairwise(word)):
                typo = word[:i] + b + a + word[i + 2 :]
                if not (a + b).isalpha() or plain(typo) in spelled:
                    continue
                near = re.split(", | or ", meant(typo, [*known, *also]).removeprefix("; did you mean ").removesuffix("?"))
                assert word in near and len(near) <= 3, (typo, near)


def test_files(tmp_path, monkeypatch):
    """A file of one's own, a function of it, data beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_own.py").write_text("def make(): ...\n")
    np.save("mine.npy", np.zeros((3, 2)))
    torch.save(torch.zeros(3, 2), "others.pt")
    for model, said in (
        ("mien_own.py:make", "did you mean mine_own.py?"),
        ("mine_own.py:mkae", "did you mean make? Known: make"),
    ):
        with pytest.raises(ValueError) as refused:
            sf.studies.load(model)
        assert said in str(refused.value)
    with pytest.raises(FileNotFoundError, match=r"no data at mnie\.npy; did you mean mine\.npy\?"):
        sf.studies.states_of("mnie.npy")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "--model", "oracle:ring", "--sampler", "dppm", "--out", "x.npy"], "did you mean dpm-2, ddpm or DPM2 a?"),
        (["sample", "--model", "oracle:ring", "--sampelr", "ddim", "--out", "x.npy"], "--sampler"),
        (["sampel"], "'sample'"),
        (["plan", "ddim", "--path", "cosin"], "got 'cosin'; did you mean cosine?"),
        (["plan", "ddim", "-o", "etta=1"], "it has eta, analytic; did you mean eta?"),
    ],
)
def test_in_the_shell(words, said):
    done = run(*words)
    assert done.returncode == 2 and said in done.stderr
