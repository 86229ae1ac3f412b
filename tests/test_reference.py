"""Reference runs: the shipped files, networks of every kind, runs by seeds that go on, measured against figures."""

import hashlib
import json
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_cli import ROOT, run
from torch import nn

import scoreflow as sf
from scoreflow.reference import Cell, Outcome, Report, load, networks
from scoreflow.reference.manifest import ddim_quadratic, lowered

CHAIN = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
EDM = sf.from_edm(lambda x, sigma, **_: x / (1 + sigma.reshape(-1, 1) ** 2)).path
PATHS = {"edm": EDM, "diffusers": CHAIN, "zoo": CHAIN, "torchcfm": sf.Flow()}


# -- the shipped files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sf.reference.names())
def test_every_cell_is_a_run(name):
    """Of the evaluations that it states; a figure has its source and its tolerance. Its folder is no other cell's."""
    reference = load(name)
    path, folders = PATHS[reference.network["kind"]], [cell.folder for cell in reference.cells]
    assert len({*folders}) == len(folders)
    for cell in reference.cells:
        assert (cell.figure is None) or (cell.source and 0 < cell.tolerance <= 0.2)
        asked = cell.asked(path)
        if (sampler := asked.pop("sampler")) != "auto":  # which asks the model
            rows = sampler if isinstance(sampler, sf.Plan) else sf.plan(sampler, path, **asked)
            repeated = {50: 49, 100: 96}.get(cell.nfe) if cell.grid == "ddim-quadratic" else None
            assert rows.nfe == (repeated or cell.nfe)


def test_what_is_shipped():
    assert {"digits", "mnist", "ddpm-cifar10", "edm-vp-cifar10", "edm-ve-cifar10", "otcfm-cifar10"} <= {*sf.reference.names()}
    told = json.loads(run("reference", "--json").stdout)
    assert {one["name"]: one["cells"] for one in told} == {name: len(load(name).cells) for name in sf.reference.names()}
    shown = run("reference", "list").stdout
    assert all(re.search(rf"^{one['name']} +{one['cells']} +{one['published']} ", shown, re.M) for one in told)
    known = {(c.label, c.nfe): c.expected for c in load("edm-vp-cifar10").cells}
    assert known["edm@karras", 35] == 1.97 and known["ipndm-4@karras to 0.002", 10] == 2.77
    for name in sf.reference.names():
        reference = load(name)
        for one in reference.files.values():
            assert one.hub or one.url.endswith(f"/{one.name}")
            assert one.sha256 == (re.fullmatch(r".*-(\w{8})\.pth", one.name) or [""] * 2)[1]
        own = reference.network["kind"] == "zoo"
        assert all(bool(c.measured) == own and (c.expected is None or not own) for c in reference.cells)


# -- what the published code does, written down once more ---------------------------------------------------------------


def eps(x, t):
    """Noise of no data, rough enough to show a wrong time or weight."""
    return torch.sin(x) * 0.7 + t.reshape(-1, 1)


@pytest.mark.parametrize("n", [10, 20, 50])
def test_ddims_own_times(n):
    """`x̂_0 = (x − √(1−ᾱ) ε̂)/√ᾱ`, then `√ᾱ' x̂_0 + √(1−ᾱ') ε̂`, at labels ⌊0.8 T (i/(n−1))²⌋ down to ᾱ' = 1."""
    bar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    labels = [int(label) for label in np.linspace(0, np.sqrt(800), n) ** 2]
    x_T = torch.randn(6, 3, dtype=torch.float64)
    x = x_T
    for label, after in zip(reversed(labels), [*reversed(labels[:-1]), -1], strict=True):
        a, b = bar[label + 1], bar[after + 1]
        noise = eps(x, torch.tensor(float(label), dtype=torch.float64))
        x = (x - (1 - a) ** 0.5 * noise) / a**0.5 * b**0.5 + (1 - b) ** 0.5 * noise
    (cell,) = load("ddpm-cifar10").chosen([n], ["ddim"])
    sol = sf.solve(sf.ScoreModel(eps, CHAIN, "eps", "index"), x_T, **cell.asked(CHAIN))
    torch.testing.assert_close(sol.x, x, rtol=1e-10, atol=1e-10)
    assert sol.nfe == len(set(labels)) and sol.times[0] == 0.801


def test_ipndm_from_sigma_80_to_0_002():
    """`x + (σ' − σ) Σ w_j d_j` with the Adams–Bashforth weights, d = (x − x̂_0)/σ, at σ^(1/7) in equal steps."""
    weights = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]

    def net(x, sigma, **_):
        return torch.tanh(x / (1 + sigma.reshape(-1, 1) ** 2) ** 0.5)

    sigmas, slopes = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 9) ** 7, []
    x_T = 80 * torch.randn(6, 3, dtype=torch.float64)
    x = x_T
    for a, b in pairwise(sigmas):
        slopes = [(x - net(x, torch.tensor(a))) / a, *slopes][:4]
        x = x + (b - a) * sum(w * d for w, d in zip(weights[len(slopes) - 1], slopes, strict=True))
    model = sf.from_edm(net)
    (cell,) = load("edm-vp-cifar10").chosen([8], ["ipndm-4"])
    torch.testing.assert_close(sf.solve(model, x_T, **cell.asked(model.path)).x, x, rtol=1e-9, atol=1e-9)


def test_lowered_at_the_end():
    """The last step is of order 1 and the one before it of order 2, n steps take n evaluations; all before are as they were."""
    times = sf.grid(CHAIN, 6, "logsnr", stop=0.01)
    for name, second in (("unipc-3", "unipc-2"), ("dpm-solver++-3m", "dpm-solver++-2m-heun")):
        sampler = sf.get_sampler(name)
        rows, full = lowered(sampler, CHAIN, times), sampler.plan(CHAIN, times)
        assert rows.nfe == 6 and rows.steps[:4] == full.steps[:4]
        assert rows.steps[4] == sf.get_sampler(second).plan(CHAIN, times).steps[4] != full.steps[4]
        assert rows.steps[5].stages == sf.get_sampler("dpm-solver++-1").plan(CHAIN, times).steps[5].stages


# -- runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_shipped_networks_give_their_figures(name, tmp_path):
    """By the command of continuous integration: the first block's figure is the one that is written down."""
    nfe = {"digits": 5, "mnist": 2}[name]
    words = ["reference", name, "--nfe", str(nfe), "--samplers", "ddim", "--blocks", "1", "--out", str(tmp_path / "out")]
    done = run(*words, "--submit", str(tmp_path / "told.json"))
    assert done.returncode == 0 and " within " in done.stdout, done.stdout + done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    (cell,), (known,) = told["cells"], load(name).chosen([nfe], ["ddim"])
    assert cell["blocks"] == pytest.approx(known.measured[:1], rel=2e-3) and cell["verdict"] == "within"
    assert told["seeds"] == [0, 499] and told["weights"] and told["files"] == {}


TOML = """
title = "toy"
shape = [1, 8, 8]
features = "digits"
n = 10
blocks = 3
batch = 4
tolerance = 0.5
{more}
[[cells]]
sampler = "ddim"
grid = "uniform"
expected = {{3 = {expected}}}
source = "a paper"
[[cells]]
sampler = "ddpm"
nfe = [2]
"""
DATA = 'data = "digits"\n[network]\nkind = "zoo"\nname = "digits"\n'


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A file of one's own, of the digits network."""
    monkeypatch.chdir(tmp_path)

    def write(expected=1.0, more=DATA, name="toy"):
        (tmp_path / f"{name}.toml").write_text(TOML.format(more=more, expected=expected))
        return str(tmp_path / f"{name}.toml")

    return write


def test_a_run_goes_on(toy, tmp_path, monkeypatch):
    """Parts of samples, then all of it; what was measured is read again; more samples are added; other weights are refused."""
    file = toy()
    for part in ("1/2", "0/2"):
        done = run("reference", file, "--shard", part)
        assert done.returncode == 0 and f"part {part} is made" in done.stdout
    whole = sf.reference.run(file, tmp_path / "other", batch=7)
    monkeypatch.setattr("scoreflow.reference.Task.make", lambda *_, **__: 0)
    first = sf.reference.run(file, tmp_path / "reference-toy")
    for one, other in zip(first.outcomes, whole.outcomes, strict=True):
        assert one.blocks == pytest.approx(other.blocks, rel=1e-3) and len(one.blocks) == 3
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    x = sf.sample(sf.zoo.digits(), (10, 1, 8, 8), "ddim", nfe=3, grid="uniform", seed=range(10))
    found = sf.measure(x, "digits", features="digits", blocks=1).figures["frechet"]
    assert first.outcomes[0].blocks[0] == pytest.approx(found, rel=1e-3)
    monkeypatch.setattr("scoreflow.reference.runs.measure", None)
    assert sf.reference.run(file, tmp_path / "reference-toy").outcomes == first.outcomes
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    more = run("reference", file, "--seeds", "0-39", "--blocks", "2", "--json")
    told = json.loads(more.stdout)
    assert told["seeds"] == [0, 39] and told["n"] == 20 and "blocks of 20, the figure is of 10" in told["cells"][0]["verdict"]
    toy(more=DATA.replace("digits", "digits").replace("[network]", "classes = 10\n[network]"))
    again = run("reference", file)
    assert again.returncode == 2 and "holds other samples: conditions" in again.stderr


@pytest.mark.filterwarnings("ignore")  # submitit's own: logs left open
def test_parts_by_an_executor(toy, tmp_path):
    """A job array, here in this process; then this process measures."""
    pytest.importorskip("submitit")
    file = toy()
    words = [
        "reference",
        file,
        "--samplers",
        "ddim",
        "--json",
        "--executor",
        f"submitit:{tmp_path}/jobs",
        "-x",
        "cluster=debug",
    ]
    told = json.loads(run(*words, "--jobs", "2").stdout)
    logs = {log.name for log in tmp_path.glob("reference-toy/*/log/*")}
    assert {f"{i:05d}-of-00002.jsonl" for i in range(2)} <= logs
    whole = sf.reference.run(file, tmp_path / "other", samplers=["ddim"])
    assert told["cells"][0]["blocks"] == pytest.approx(whole.outcomes[0].blocks, rel=1e-3)
    assert "needs --jobs" in run(*words).stderr
    assert "go with --executor" in run("reference", file, "--jobs", "2").stderr
    assert "give one of the two" in run(*words, "--shard", "0/2").stderr


def test_what_a_run_takes(toy, tmp_path):
    """Counted before, and after a part of it."""
    file = toy()
    words = ["reference", file, "--dry-run", "--json"]
    told = json.loads(run(*words).stdout)
    assert (told["samples"], told["evaluations"], told["passes"]) == (60, 30 * 3 + 30 * 2, 8 * 3 + 8 * 2)
    assert 0 < told["seconds"] < 60 and not (tmp_path / "reference-toy").exists()
    run("reference", file, "--shard", "1/2", "--samplers", "ddpm")
    told = json.loads(run(*words).stdout)
    assert [one["samples"] for one in told["cells"]] == [30, 16] and told["passes"] == 8 * 3 + 4 * 2
    shown = run("reference", "edm-vp-cifar10", "--dry-run", "--nfe", "5", "--samplers", "ipndm-4")
    assert shown.returncode == 0 and "13.59     0.68  nobody has run this" in shown.stdout
    assert "750,000      3,000   ?" in shown.stdout and "Put there: edm-cifar10-32x32-uncond-vp.pkl from https" in shown.stdout


def test_verdicts(toy):
    cell = Cell("ddim", 5, expected=2.0, tolerance=0.1, source="a paper")
    reference = load(toy())
    said = {
        "nobody has run this": (cell, ()), "within": (cell, (2.0, 2.1, 2.4)), "off by +0.3": (cell, (2.3,)),
        "off by -0.3, where theirs clips": (Cell("ddim", 5, expected=2.0, tolerance=0.1, differs="theirs clips"), (1.7,)),
        "not run here": (Cell("ddim", 5, measured=(1.0, 2.0)), ()), "no figure to compare to": (Cell("ddim", 5), (1.0,)),
    }  # fmt: skip
    for words, (one, blocks) in said.items():
        report = Report(reference, 10, (Outcome(one, blocks),), {})
        assert report.verdict(report.outcomes[0]) == words and report.good == (words != "off by +0.3")
        assert words in str(report)
        json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert Report(reference, 20, (), {}).verdict(Outcome(cell, (9.0,))).startswith("not compared")
    assert Cell("ddim", 5, measured=(1.0, 2.0)).figure == 1.5
    assert str(Outcome(cell, (1.0, 2.0, 3.0))) == "2 ± 1" and str(Outcome(cell, (1.0,))) == "1"


def test_a_figure_that_is_off(toy):
    done = run("reference", toy(expected=1e-3), "--samplers", "ddim")
    assert done.returncode == 1 and "off by +" in done.stdout and done.stderr == ""


# -- networks -----------------------------------------------------------------------------------------------------------


class Denoiser(nn.Module):
    """EDM's way to be called."""

    sigma_min, sigma_max = 0.002, 80.0

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(0.9))

    def forward(self, x, sigma, class_labels=None):
        return self.size * x * 0.25 / (0.25 + sigma.reshape(-1, 1, 1, 1) ** 2)


def denoiser():
    """For --network."""
    return Denoiser()


def sample_of(reference, model):
    """Two samples of its first cell."""
    return sf.sample(model, (2, 1, 8, 8), seed=[0, 1], **load(reference).cells[0].asked(model.path))


def test_a_pickle(toy, tmp_path):
    """Only with leave; or read by one's own code. A hash that is stated is held to."""
    kind = '[network]\nkind = "edm"\n[files.network]\nname = "net.pkl"\nurl = "https://a/net.pkl"\n'
    file = toy(more='data = "digits"\n' + kind)
    missing = run("reference", file)
    assert missing.returncode == 2 and "Put there: net.pkl from https://a/net.pkl" in missing.stderr
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"ema": Denoiser()}))
    refused = run("reference", file)
    assert refused.returncode == 2 and "allow that with --unpickle" in refused.stderr
    found = hashlib.sha256((tmp_path / "net.pkl").read_bytes()).hexdigest()
    allowed = run("reference", file, "--unpickle", "--json")
    assert allowed.returncode in (0, 1) and f"sha256 {found}, not checked: nobody has stated it" in allowed.stderr
    told = json.loads(allowed.stdout)
    assert told["files"] == {"network": found}
    own = run("reference", file, "--network", f"{__file__}:denoiser", "--json")
    assert json.loads(own.stdout)["cells"] == told["cells"]
    toy(more='data = "digits"\n' + kind + f'sha256 = "{found[:8]}"\n')
    assert "as stated" in run("reference", file, "--unpickle").stderr
    toy(more='data = "digits"\n' + kind + 'sha256 = "00000000"\n')
    other = run("reference", file, "--unpickle")
    assert other.returncode == 2 and "it is another file" in other.stderr


def test_the_hub(toy, tmp_path, monkeypatch):
    """A folder as the hub gives it, by its own package; the network goes in with the scheduler of the file."""
    diffusers = pytest.importorskip("diffusers")
    hub = pytest.importorskip("huggingface_hub")
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    net = diffusers.UNet2DModel(8, 1, 1, **blocks, norm_num_groups=4)
    net.save_pretrained(tmp_path / "cache")
    asked = []

    def snapshot_download(repository, allow_patterns):
        asked.append(repository)
        return str(tmp_path / "cache")

    scheduler = '[network.scheduler]\nbeta_schedule = "linear"\nprediction_type = "epsilon"\n'
    file = toy(
        more=f'data = "digits"\n[network]\nkind = "diffusers"\n{scheduler}[files.network]\nname = "net"\nhub = "a/net"\n'
    )
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    reference = load(file)
    places = networks.find(reference, tmp_path)
    weights = (tmp_path / "cache" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert networks.hashes(reference, places) == {"network": hashlib.sha256(weights).hexdigest()} and asked == ["a/net"]
    x = sample_of(file, sf.from_diffusers(net.eval(), diffusers.DDPMScheduler()))
    torch.testing.assert_close(sample_of(file, networks.read(reference, places)), x)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(FileNotFoundError, match=r"Put there: net, a folder with the files of https://huggingface\.co/a/net"):
        networks.find(reference, tmp_path)
    (tmp_path / "cache").rename(tmp_path / "net")
    assert networks.find(reference, tmp_path) == {"network": tmp_path / "net"}


def test_torchcfm(toy, tmp_path):
    """Its averaged weights, saved by one process or by several; data stand at its time 1."""
    unet = pytest.importorskip("torchcfm.models.unet.unet")
    size = {"dim": [1, 8, 8], "num_channels": 32, "num_res_blocks": 1, "channel_mult": [1], "attention_resolutions": "8"}
    net = unet.UNetModelWrapper(**size).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    held = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"ema_model": held, "step": 4}, tmp_path / "net.pt")
    table = "\n".join(f"{name} = {json.dumps(value)}" for name, value in size.items())
    file = toy(more=f'[network]\nkind = "torchcfm"\n[network.unet]\n{table}\n[files.network]\nname = "net.pt"\nurl = "u"\n')
    model = networks.read(load(file), networks.find(load(file), tmp_path))
    torch.testing.assert_close(sample_of(file, model), sample_of(file, sf.from_velocity(net, data_at=1)))
    assert not any(parameter.requires_grad for parameter in model.net.net.parameters())


# -- what is wrong ------------------------------------------------------------------------------------------------------


def test_what_is_typed_wrong(toy, tmp_path):
    for words, says in [
        (["digitz"], "no reference is called 'digitz'; did you mean digits"), (["no.toml"], "No such file"),
        (["digits", "--samplers", "ddimm"], "has no sampler 'ddimm'; did you mean ddim"), (["digits", "--n", "1"], "n must be"),
        (["digits", "--n", "4", "--seeds", "0-9"], "n=4 and seeds exclude each other"),
        (["digits", "--seeds", "0-9", "--blocks", "3"], "10 seeds cannot be cut into 3 equal blocks"),
        (["digits", "--blocks", "0"], "blocks must be"), (["digits", "--submit", "nowhere/x.json"], "must lie in a folder"),
        (["digits", "--network", "net"], "network must be file.py:function"), (["digits", "--shard", "3/2"], "shard must be"),
    ]:  # fmt: skip
        done = run("reference", *words, "--out", str(tmp_path / "out"))
        assert done.returncode == 2 and says in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
    for more, says in [
        ("title = 2\ntitle = 3\n", "is no TOML"), (DATA + "[colour]\n", "'colour' is nothing that a reference has"),
        ('format = "gif"\n' + DATA, "format must be one of"), (DATA + "[files.network]\nplace = 3\n", "place"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(says)):
            load(toy(more=more))
    with pytest.raises(ValueError, match="needs a path made from betas"):
        ddim_quadratic(sf.VPSDE(), 10)


def test_samples_that_are_not_there(toy, tmp_path):
    asked = sf.reference.task(load(toy()), tmp_path / "out", samplers=["ddim"], blocks=1)
    asked.make(sf.zoo.digits(), (0, 2))
    with pytest.raises(ValueError, match=r"lacks 10 of the 10 samples of a block, first of seed 0"):
        asked.measured(*networks.judge(asked.reference, {}), {"files": {}})


def test_the_page_has_the_figures():
    """Every published figure of the shipped files, in the row of its sampler."""
    rows = (ROOT / "docs/reference_runs.md").read_text(encoding="utf-8").splitlines()
    for name in sf.reference.names():
        for cell in load(name).cells:
            if cell.expected is not None:
                (row,) = [row for row in rows if row.startswith((f"| {name} | {cell.label} |", f"| {name} | {cell.label},"))]
                assert re.search(rf"\b{cell.nfe}\b", row) and re.search(rf"\b{re.escape(f'{cell.expected:g}')}\b", row)
