"""EDM's preconditioning in schedulers of diffusers: c_in, c_out, c_skip and c_noise are theirs, both ways."""

import math

import pytest
import torch
from problems import states

diffusers = pytest.importorskip("diffusers")

import scoreflow as sf  # noqa: E402
from scoreflow.interop import DiffusersScheduler, describe, from_diffusers  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
X = states(4, 3)
EULER, DPM, COSINE = (
    getattr(diffusers, f"{name}Scheduler") for name in ("EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep")
)
VIDEO = diffusers.EulerDiscreteScheduler(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction", sigma_min=0.002,
    sigma_max=700.0, timestep_spacing="leading", timestep_type="continuous", use_karras_sigmas=True,
)  # fmt: skip
"""That of Stable Video Diffusion."""


class Net(torch.nn.Module):
    """Told c_noise; keeps what it was told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, sample, timestep, **conditions):
        t = torch.as_tensor(timestep)
        self.told.append(t)
        return (torch.sin(3 * sample) * 0.3 + sample * torch.cos(t.reshape(-1, *[1] * (sample.ndim - 1))).to(sample),)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", [EULER, DPM, COSINE])
def test_the_model_by_their_own_preconditioning(kind, prediction):
    """At four levels, in float64: x̂_0 by `precondition_inputs`, `precondition_noise` and `precondition_outputs`."""
    theirs, net = kind(sigma_data=0.7, prediction_type=prediction), Net()
    model = from_diffusers(net, theirs)
    assert model.path.kappa(1.0) == pytest.approx(theirs.config.sigma_max, rel=1e-12)
    for level in (0.31, 2.0, 15.0, 79.0):
        sigma = torch.tensor([level], dtype=torch.float64)
        t = model.path.time(-math.log(level))
        told = theirs.precondition_noise(sigma)
        wanted = theirs.precondition_outputs(X, net(theirs.precondition_inputs(X, sigma), told)[0], sigma)
        torch.testing.assert_close(model.x0(X, t), wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(net.told[-1], told.expand(4), rtol=1e-10, atol=1e-12)


def test_stable_video_diffusion_by_its_own_step():
    """`pred_original_sample` at every level, 1e-5 of its size: their numbers are of 32 bits."""
    net, x = Net(), X.float()
    model = from_diffusers(net, VIDEO)
    VIDEO.set_timesteps(9)
    for t, sigma in zip(VIDEO.timesteps, VIDEO.sigmas.tolist(), strict=False):
        at = x * math.hypot(sigma, 1)
        output = net(VIDEO.scale_model_input(at, t), t)[0]
        wanted = VIDEO.step(output, t, at).pred_original_sample
        found = model.x0(at, min(1.0, model.path.time(-math.log(sigma))))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(at.abs().max()) / (1 + sigma))
    plain = {"beta_schedule": "linear", "prediction_type": "v_prediction", "timestep_type": "continuous"}
    assert describe(plain).path.kappa(1.0) == pytest.approx(157.4, rel=1e-3)  # of the chain, where none is given
    assert describe({**plain, "prediction_type": "epsilon"}).preconditioning is None  # they tell labels there


@pytest.mark.parametrize(
    ("theirs", "sampler"), [(EULER(), "ddim"), (DPM(solver_order=2), "dpm-solver++-2m"), (VIDEO, "ddim"), (EULER(), "edm")]
)
def test_the_scheduler_gives_what_theirs_gives(theirs, sampler):
    """On their levels: labels, the prior's size, what the network sees, and the sample; and `solve` on the same."""
    theirs.set_timesteps(9)
    ours = DiffusersScheduler.from_config(theirs, sampler=sampler)
    ours.set_timesteps(sigmas=theirs.sigmas.tolist())
    model = from_diffusers(Net(), theirs)
    x = y = X.float() * theirs.config.sigma_max
    assert ours.init_noise_sigma == pytest.approx(math.hypot(theirs.config.sigma_max, 1), rel=1e-6)
    later = DiffusersScheduler.from_config(theirs, sampler=sampler)
    later.set_timesteps(sigmas=[10.0, 1.0])
    assert later.init_noise_sigma == pytest.approx(math.hypot(10, 1), rel=1e-6)
    net, times = Net(), [1.0, *(float(model.path.time(-math.log(s))) for s in theirs.sigmas.tolist()[1:-1]), 0.0]
    for t in ours.timesteps:
        y = ours.step(net(ours.scale_model_input(y, t), t)[0], t, y).prev_sample
    torch.testing.assert_close(y, sf.solve(model, x, sampler, grid=times).x, rtol=1e-4, atol=1e-4)
    if sampler == "edm":
        assert len(ours.timesteps) == 17
        return
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-6)
    for t in theirs.timesteps:
        x = theirs.step(net(theirs.scale_model_input(x, t), t)[0], t, x, return_dict=False)[0]
    torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [EULER, COSINE])
def test_begin_in_the_middle_and_keep(kind, tmp_path):
    """Noised data at a label, what the network sees there, the sample of `solve`; saved and loaded."""
    theirs = kind()
    DiffusersScheduler.from_config(theirs, sampler="ddim", nfe=8).save_pretrained(tmp_path)
    ours = DiffusersScheduler.from_pretrained(tmp_path)
    ours.set_timesteps(50)
    ours.set_begin_index(3)
    model, x_0, eps = from_diffusers(Net(), theirs), X.float(), states(4, 3).float().flip(0)
    plan = sf.plan("ddim", model.path, nfe=8)
    assert len(ours.timesteps) == 8
    x = y = ours.add_noise(x_0, eps, ours.timesteps[3:4])
    torch.testing.assert_close(x, model.path.q_sample(x_0, plan.times[3], eps), rtol=1e-4, atol=1e-4)
    net = Net()
    for t in ours.timesteps[3:]:
        y = ours.step(net(ours.scale_model_input(y, t), t)[0], t, y).prev_sample
    torch.testing.assert_close(y, sf.solve(model, x, "ddim", grid=plan.times[3:]).x, rtol=1e-4, atol=1e-4)


def test_a_raw_network_of_edm():
    """Table 1 of the paper, with the paper's σ_d."""

    def raw(x, c_noise, class_labels=None):
        return torch.sin(x) + c_noise[:, None] * class_labels

    model = sf.from_edm(raw, sigma_data=0.5)
    sigma, d = 3.0, 0.5
    root = math.sqrt(sigma**2 + d**2)
    wanted = d**2 / root**2 * X + sigma * d / root * (torch.sin(X / root) + math.log(sigma) / 4 * 2.0)
    torch.testing.assert_close(model.x0(X, model.path.time(-math.log(sigma)), y=2.0), wanted, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="sigma_data must be a finite number > 0"):
        sf.from_edm(raw, sigma_data=0)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"sigma_data": 0.5}, "scheduler dict: this configuration has sigma_data, and does not say"),
        (EULER().config, "give the scheduler itself"),
        (DPM(prediction_type="sample"), "prediction_type must be one of epsilon, v_prediction, got 'sample'"),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas=True turns the time"),
    ],
)  # fmt: skip
def test_refused(config, match):
    with pytest.raises(ValueError, match=match):
        describe(config)


def test_networks_that_their_pipelines_turn():
    class ZImageTransformer2DModel(Net):
        pass

    with pytest.raises(ValueError, match="the pipeline of ZImageTransformer2DModel turns"):
        from_diffusers(ZImageTransformer2DModel(), diffusers.FlowMatchEulerDiscreteScheduler())
