"""Our samplers in pipelines of diffusers: the samples of `solve` on the same network, whatever the sampler."""

import json
import warnings

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import scoreflow as sf  # noqa: E402
from scoreflow.interop import DiffusersScheduler, from_diffusers  # noqa: E402

SHAPE = (2, 3, 8, 8)
SAMPLERS = [
    ("ddim", {}), ("ddim", {"eta": 0.5}), ("ddpm", {}), ("unipc", {}), ("dpm-solver++", {}), ("edm", {}), ("pf-ode-rk4", {}),
    ("dpm-solver-3", {}), ("deis", {}), ("ipndm", {}), ("sde-dpm-solver++", {}), ("seeds-2", {}), ("sa-solver", {}),
    ("auto", {}),
    ("edm-churn", {"S_churn": 5.0}), ("er-sde", {}), ("sra", {}), ("pndm", {}),
]  # fmt: skip


def unet(**config):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=config.pop("out_channels", 3), layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
        attention_head_dim=4, **config,
    ).eval()  # fmt: skip


def draws(seed, count, shape=SHAPE):
    """What a pipeline draws: the prior, and what steps take, from one generator."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count + 1)]


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS, ids=str)
def test_a_pipeline_gives_what_solve_gives(sampler, options):
    """DDPMPipeline with a random network, at the calls asked for: the samples, their number of calls, and the noise."""
    net, config = unet(), diffusers.DDIMScheduler(clip_sample=False).config
    pipe = diffusers.DDPMPipeline(net, diffusers.DDPMScheduler.from_config(config))
    pipe.set_progress_bar_config(disable=True)
    nfe = 24 if sampler == "pndm" else 13
    pipe.scheduler = DiffusersScheduler.from_config(pipe.scheduler.config, sampler=sampler, nfe=nfe, **options)
    calls = []
    net.register_forward_hook(lambda *of: calls.append(1))
    images = pipe(batch_size=2, generator=torch.Generator().manual_seed(5), output_type="np", num_inference_steps=50).images
    model = from_diffusers(net, config)
    plan = sf.plan(sampler, model.path, nfe=nfe, **options)
    assert len(calls) == plan.nfe == len(pipe.scheduler.timesteps) <= nfe
    x_T, *noise = draws(5, plan.noise_count)
    noise = torch.stack(noise) if noise else None
    wanted = sf.solve(model, x_T, sampler, nfe=nfe, noise=noise, **options).x
    wanted = (wanted / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(images - wanted).max() < 1e-5


def stepped(scheduler, net, x, generator=None, **more):
    """The loop of a pipeline."""
    with torch.no_grad():
        for t in scheduler.timesteps[scheduler.begin_index :]:
            x = scheduler.step(net(scheduler.scale_model_input(x, t), t), t, x, generator=generator, return_dict=False)[0]
    return x


CONFIG = diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True).config

EPS = diffusers.DDIMScheduler(clip_sample=False).config


class Net(torch.nn.Module):
    """Smooth, and told its time."""

    def forward(self, x, t):
        return torch.sin(3 * x) * 0.3 + x * torch.cos(torch.as_tensor(t).reshape(-1, *[1] * (x.ndim - 1)) / 500).to(x)


def test_configurations_of_every_kind():
    """v at zero terminal SNR, and a flow moved by its shift or by mu: as `solve` on the same path, prediction and times."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    scheduler = DiffusersScheduler("dpm-solver++", CONFIG, nfe=9)
    scheduler.set_timesteps(9)
    model = sf.ScoreModel(Net(), scheduler.path, "v", "index")
    torch.testing.assert_close(stepped(scheduler, Net(), x), sf.solve(model, x, "dpm-solver++", nfe=9).x, rtol=1e-4, atol=1e-5)
    for more, mu, shift in (({"shift": 3.0}, None, 3.0), ({"use_dynamic_shifting": True}, 0.7, torch.tensor(0.7).exp().item())):
        config = diffusers.FlowMatchEulerDiscreteScheduler(**more).config
        scheduler = DiffusersScheduler("unipc", config, nfe=8)
        scheduler.set_timesteps(50, mu=mu)
        u = torch.linspace(1, 0, 9, dtype=torch.float64)
        times = shift * u / (1 + (shift - 1) * u)
        torch.testing.assert_close(scheduler.timesteps.double(), 1000 * times[:-1], rtol=1e-6, atol=1e-4)
        model = sf.ScoreModel(Net(), sf.Flow(), "flow", ("scaled", 1000.0))
        wanted = sf.solve(model, x, "unipc", grid=times.tolist()).x
        torch.testing.assert_close(stepped(scheduler, Net(), x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigmas", [[1 - k / 8 for k in range(8)], [1.0, 0.6, 0.5, 0.1]])
@pytest.mark.parametrize(
    ("config", "mu"),
    [({"shift": 3.0}, None), ({"use_dynamic_shifting": True, "shift_terminal": 0.02}, 0.7),
     ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, 0.7)],
)  # fmt: skip
def test_flow_times_are_those_of_their_euler(config, mu, sigmas):
    """From σ that a pipeline gives: the same times and, with Euler, the same steps as FlowMatchEulerDiscreteScheduler."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    theirs.set_timesteps(sigmas=sigmas, mu=mu)
    y = x
    for t in theirs.timesteps:
        y = theirs.step(Net()(y, t), t, y, return_dict=False)[0]
    ours = DiffusersScheduler("pf-ode-euler", theirs.config)
    ours.set_timesteps(sigmas=sigmas, mu=mu)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(stepped(ours, Net(), x), y, rtol=1e-4, atol=1e-4)


def test_sigmas_on_a_chain():
    """σ/α of EDM's kind, one a call, and a last step to the data, whether its 0 is given or not."""
    sigmas = [80.0, 10.0, 2.0, 0.3]
    for given in (sigmas, [*sigmas, 0.0]):
        scheduler = DiffusersScheduler("ddim", EPS)
        scheduler.set_timesteps(sigmas=given)
        found = [scheduler.path.kappa((float(label) + 1) / 1000) for label in scheduler.timesteps]
        assert found == pytest.approx(sigmas, rel=1e-3)  # labels are of 32 bits


def test_transitions():
    """Mean, std and log-density of each step of a policy, as `step_log_prob` has them at the states of the pipeline."""
    scheduler = DiffusersScheduler("flow-sde", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    scheduler.set_timesteps(5)
    x, total, generator = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)), 0.0, torch.Generator().manual_seed(2)
    kept = [x]
    assert scheduler.transition is None
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(Net()(x, t), t, x, generator=generator, return_dict=False)[0]
        kept.append(x)
        assert (scheduler.transition is None) == (i == 4)  # the last step is x̂_0
        total = total + (scheduler.transition.log_prob if i < 4 else 0.0)
    model = sf.ScoreModel(Net(), sf.Flow(), "flow", ("scaled", 1000.0))
    wanted = sf.step_log_prob(model, sf.plan("flow-sde", model.path, grid=moved(5, 3.0)), torch.stack(kept)).total
    torch.testing.assert_close(total, wanted, rtol=1e-6, atol=1e-3)


def moved(n, shift):
    """The uniform times of a flow, moved."""
    return [shift * u / (1 + (shift - 1) * u) for u in (1 - k / n for k in range(n + 1))]


def test_generators_one_a_sample():
    """Sample k has the noise of its own generator, whatever its batch."""

    def run(seeds, of):
        scheduler = DiffusersScheduler("ddpm", CONFIG, nfe=6)
        scheduler.set_timesteps(6)
        return stepped(scheduler, Net(), of, [torch.Generator().manual_seed(s) for s in seeds])

    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run([7, 8, 9], x)[1:2], run([8], x[1:2]))
    with pytest.raises(ValueError, match="generator has 2 for 3 samples"):
        run([7, 8], x)


@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver++", "edm"])
def test_image_to_image(sampler):
    """From a call in the middle, on noised data: as `solve` from that time. A call within a step is refused."""
    scheduler = DiffusersScheduler(sampler, EPS, nfe=11)
    scheduler.set_timesteps(11)
    scheduler.set_begin_index(4)
    x_0, eps = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in (2, 3))
    x = scheduler.add_noise(x_0, eps, scheduler.timesteps[4:5])
    plan = sf.plan(sampler, scheduler.path, nfe=11)
    t = plan.evaluation_times[4]
    torch.testing.assert_close(x, scheduler.path.q_sample(x_0, t, eps))
    times = [t, *(u for u in plan.times if u < t)]
    model = sf.ScoreModel(Net(), scheduler.path, "eps", "index")
    wanted = sf.solve(model, x, sampler, grid=times).x
    torch.testing.assert_close(stepped(scheduler, Net(), x), wanted, rtol=1e-4, atol=1e-5)
    assert scheduler.step_index == 11
    if sampler == "edm":
        scheduler.set_timesteps(11)
        scheduler.set_begin_index(3)
        with pytest.raises(ValueError, match=r"begin_index=3: from t=.* a sampler of one call a step begins anywhere"):
            stepped(scheduler, Net(), x)
    with pytest.raises(ValueError, match="begin_index=40 of 11 calls of the network: give num_inference_steps=11"):
        scheduler.set_begin_index(40)


def test_an_edit_between_steps_is_taken():
    """A pipeline may change the latents before a step, as inpainting does; within a step of two stages it may not."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.5
    scheduler = DiffusersScheduler("ddim", CONFIG, nfe=6)
    scheduler.set_timesteps(6)
    y = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            y = scheduler.step(Net()(y, t), t, y).prev_sample
            y = torch.where(mask, torch.zeros_like(y), y)

    def edit(state):
        if state.step:
            state.x[mask] = 0.0

    model = sf.ScoreModel(Net(), scheduler.path, "v", "index")
    torch.testing.assert_close(y, sf.solve(model, x, "ddim", nfe=6, callback=edit).x, rtol=1e-4, atol=1e-5)
    scheduler = DiffusersScheduler("edm", EPS, nfe=5)
    scheduler.set_timesteps(5)
    y = scheduler.step(Net()(x, scheduler.timesteps[0]), scheduler.timesteps[0], x).prev_sample
    with pytest.raises(ValueError, match="x can be replaced between steps"):
        scheduler.step(y, scheduler.timesteps[1], y + 1)


def test_round_trip(tmp_path):
    """Saved and loaded, and made from one of ours: the same run."""
    scheduler = DiffusersScheduler("unipc", CONFIG, nfe=7, grid="quadratic", order=2)
    scheduler.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert (kept["sampler"], kept["nfe"], kept["grid"], kept["options"]) == ("unipc", 7, "quadratic", {"order": 2})
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    made = [scheduler, DiffusersScheduler.from_pretrained(tmp_path), DiffusersScheduler.from_config(scheduler.config)]
    results = []
    for one in made:
        one.set_timesteps(50)
        results.append(stepped(one, Net(), x))
    assert all(torch.equal(y, results[0]) for y in results) and len(made[1].timesteps) == 7


def test_previews_and_training():
    scheduler = DiffusersScheduler("ddim", CONFIG, nfe=4)
    scheduler.set_timesteps(4)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    output = Net()(x, scheduler.timesteps[0])
    model = sf.ScoreModel(Net(), scheduler.path, "v", "index")
    torch.testing.assert_close(scheduler.step(output, scheduler.timesteps[0], x).pred_original_sample, model.x0(x, 1.0))
    theirs = diffusers.DDIMScheduler.from_config(CONFIG)
    labels = torch.tensor([10, 900])
    for name in ("add_noise", "get_velocity"):
        mine, peer = (getattr(one, name)(x, output, labels) for one in (scheduler, theirs))
        torch.testing.assert_close(mine, peer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: DiffusersScheduler("dpm-adaptive", CONFIG), ValueError, "is not made of rows"),
        (lambda: DiffusersScheduler("scipy", CONFIG), ValueError, "is not made of rows"),
        (lambda: DiffusersScheduler("ddimm", CONFIG), ValueError, "no sampler is called 'ddimm'"),
        (lambda: DiffusersScheduler("ddim", CONFIG, etaa=1.0), TypeError, "has no option 'etaa'"),
        (lambda: DiffusersScheduler("ddim", CONFIG, analytic=1.0), ValueError, "give no first answer"),
        (lambda: DiffusersScheduler("ddim", 3), TypeError, "scheduler must be a scheduler of diffusers or its configuration"),
        (lambda: DiffusersScheduler("ddim", {"_class_name": "KarrasVeScheduler"}), ValueError, "neither betas nor a flow"),
        (lambda: DiffusersScheduler("ddim", CONFIG).step(None, 0, torch.zeros(1, 2)), ValueError, "set_timesteps comes before"),
    ],
)  # fmt: skip
def test_refused(make, error, match):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match=match):
            make()
