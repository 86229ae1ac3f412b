"""Networks of other libraries as score models: against the other code's own conversions, or its published formulas."""

import math
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from problems import mixture, states

import scoreflow as sf
from scoreflow.interop import (
    describe,
    from_diffusers,
    from_edm,
    from_guided_diffusion,
    from_k_diffusion,
    from_score_sde,
    from_velocity,
    k_sampler,
)

X = states(4, 3)
DATA = mixture(d=3)


# -- diffusers -----------------------------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """As a network of diffusers: told a timestep, gives an object with `sample`."""

    def forward(self, sample, timestep, **conditions):
        t = timestep.reshape(-1, *[1] * (sample.ndim - 1)).to(sample)
        return SimpleNamespace(sample=torch.sin(sample) + t / 1000)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_diffusers_by_their_own_conversion(schedule, prediction):
    """x̂_0 at a label is `pred_original_sample` of their scheduler, and ᾱ is theirs."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_schedule=schedule, prediction_type=prediction, clip_sample=False)
    model = from_diffusers(Net(), theirs)
    x = X.float()
    theirs.set_timesteps(10)
    for t in theirs.timesteps[[0, 4, 9]]:
        output = Net()(x, t.expand(len(x))).sample
        wanted = theirs.step(output, t, x).pred_original_sample
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(model.x0(x, (int(t) + 1) / 1000), wanted, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_betas_of_diffusers(schedule):
    """Each β, and so its hold at the end of a cosine chain, which ᾱ does not show."""
    theirs = pytest.importorskip("diffusers").DDPMScheduler(beta_schedule=schedule)
    chain = describe(theirs).path
    bar = chain.alpha(torch.arange(1001, dtype=torch.float64) / 1000) ** 2
    torch.testing.assert_close(1 - bar[1:] / bar[:-1], theirs.betas.double(), rtol=1e-5, atol=1e-9)


class FluxTransformer2DModel(Net):
    """It is told t in [0, 1], and multiplies by 1000 itself."""


@pytest.mark.parametrize(("net", "told"), [(Net(), 500.0), (FluxTransformer2DModel(), 0.5)])
def test_what_flows_are_told(net, told):
    flow = pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler()
    seen = []
    hook = net.register_forward_pre_hook(lambda net, args, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True)
    from_diffusers(net, flow)(X, 0.5)
    hook.remove()
    assert [float(t[0]) for t in seen] == [told]


def test_networks_that_give_a_tuple():
    """As with `return_dict=False`: its first."""

    class Tuple(Net):
        def forward(self, sample, timestep):
            return super().forward(sample, timestep).sample, "more"

    scheduler = pytest.importorskip("diffusers").DDPMScheduler()
    torch.testing.assert_close(from_diffusers(Tuple(), scheduler)(X, 0.5), from_diffusers(Net(), scheduler)(X, 0.5))


def test_diffusers_configurations():
    """Given betas, zero terminal SNR, flows, Flux's time; a configuration alone; what is none of these."""
    diffusers = pytest.importorskip("diffusers")
    betas = np.linspace(1e-3, 0.1, 50)
    own = describe(diffusers.DDIMScheduler(trained_betas=betas, num_train_timesteps=50))
    assert own.path.T == 50 and own.path.alpha(1.0) ** 2 == pytest.approx(np.prod(1 - betas), rel=1e-12)
    zero = describe(diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    assert zero.path.alpha(1.0) == 0 and zero.prediction == "v"
    flow = describe(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert isinstance(flow.path, sf.Flow) and (flow.prediction, flow.time) == ("flow", ("scaled", 1000.0))
    assert describe(dict(diffusers.DDPMScheduler().config)).path.T == 1000
    with pytest.raises(ValueError, match="differ by"):
        broken = diffusers.DDPMScheduler()
        broken.alphas_cumprod = broken.alphas_cumprod**1.1
        describe(broken)
    with pytest.raises(ValueError, match="prediction_type must be one of epsilon"):
        describe({"beta_schedule": "linear", "prediction_type": "banana"})
    with pytest.raises(ValueError, match="beta_schedule must be one of linear"):
        describe({"beta_schedule": "laplace"})
    for wrong in (3, None, "linear"):
        with pytest.raises(TypeError, match="scheduler must be a scheduler of diffusers"):
            describe(wrong)
    with pytest.raises(TypeError, match="scheduler=None"):
        from_diffusers(Net())
    with pytest.raises(TypeError, match="net must be a network of diffusers"):
        from_diffusers(3, {"beta_schedule": "linear"})


# -- denoisers in σ ------------------------------------------------------------------------------------------------------


def denoiser(x, sigma, **conditions):
    """The exact x̂_0 of the mixture at x = x_0 + σ ε."""
    path = sf.VESDE(1e-4, 100.0)
    return torch.cat([DATA.model(path).x0(one[None], path.time(-math.log(float(s)))) for one, s in zip(x, sigma, strict=True)])


LEVELS = [(80 ** (1 / 7) + k / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for k in range(18)]


def test_edm_by_its_own_sampler():
    """Algorithm 1 of the paper on its own grid, in float64."""
    model = from_edm(denoiser)
    x = y = 80 * X
    for a, b in zip(LEVELS, [*LEVELS[1:], 0.0], strict=True):
        slope = (y - denoiser(y, torch.full((4,), a))) / a
        ahead = y + (b - a) * slope
        y = ahead if b == 0 else y + (b - a) * (slope + (ahead - denoiser(ahead, torch.full((4,), b))) / b) / 2
    times = [1.0, *(model.path.time(-math.log(s)) for s in LEVELS[1:]), 0.0]
    torch.testing.assert_close(sf.solve(model, x, "edm", grid=times).x, y, rtol=1e-7, atol=1e-7)
    assert model.path.sigma(1.0) == pytest.approx(80, rel=1e-12)


def test_edm_takes_what_the_network_says():
    class Own:
        sigma_min, sigma_max = 0.01, 50.0

        def __call__(self, x, sigma, class_labels=None):
            return x * class_labels

    model = from_edm(Own())
    assert (model.path.sigma_min, model.path.sigma(1.0)) == (0.01, pytest.approx(50))
    torch.testing.assert_close(model.x0(X, 0.5, y=2.0), 2 * X)
    with pytest.raises(TypeError, match="net must be a network"):
        from_edm(3)
    with pytest.raises(ValueError, match="need 0 < sigma_min < sigma_max"):
        from_edm(denoiser, sigma_min=3.0, sigma_max=1.0)


def test_k_diffusion_denoisers():
    """Its σ from `sigmas`; ε̂ is (x − D)/σ. Without σ an error says what to give."""
    with pytest.raises(ValueError, match="sigma_min=None, and the denoiser has none of its own"):
        from_k_diffusion(denoiser)
    model = from_k_diffusion(denoiser, 0.02, 14.6)
    sigma = model.path.sigma(0.7)
    torch.testing.assert_close(model.eps(X, 0.7), (X - denoiser(X, torch.full((4,), sigma))) / sigma, rtol=1e-6, atol=1e-8)

    class Held:
        sigmas = torch.tensor([0.03, 1.0, 14.0])

        def __call__(self, x, sigma):
            return x

    assert from_k_diffusion(Held()).path.sigma(1.0) == pytest.approx(14)


def euler(model, x, sigmas):
    """k-diffusion's `sample_euler`."""
    for a, b in pairwise(sigmas):
        x = x + (x - model(x, a.expand(len(x)))) / a * (b - a)
    return x


def test_k_samplers_are_called_as_theirs():
    sigmas = torch.tensor([*LEVELS, 0.0], dtype=torch.float64)
    x, seen = 80 * X, []
    out = k_sampler("ddim")(denoiser, x, sigmas, extra_args={}, callback=seen.append, disable=True)
    torch.testing.assert_close(out, euler(denoiser, x, sigmas), rtol=1e-7, atol=1e-8)
    assert [info["i"] for info in seen] == list(range(18)) and set(seen[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}
    torch.testing.assert_close(torch.tensor([info["sigma"] for info in seen]).double(), sigmas[:-1], rtol=1e-6, atol=1e-9)
    model = from_k_diffusion(denoiser, LEVELS[-1] / 10, 80.0)
    times = [1.0, *(model.path.time(-math.log(s)) for s in LEVELS[1:]), 0.0]
    for name, options in (("unipc", {}), ("seeds-2", {}), ("dpm-solver++-3m", {}), ("edm", {}), ("ddim", {"eta": 1.0})):
        out = k_sampler(name, **options)(denoiser, x, sigmas, disable=True, seed=3)
        wanted = sf.solve(model, x, name, grid=times, seed=3, **options).x
        torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-7)
    assert k_sampler("dpm-solver++-2m").__name__ == "sample_dpm_solverpp"


def test_k_samplers_of_flows_and_the_comfyui_node(monkeypatch):
    """σ of a flow are its times: Euler in x is `pf-ode-euler`, and the node finds out by the model's sampling."""
    exact = DATA.model(sf.Flow())

    def flow_denoiser(x, sigma, **conditions):
        return torch.cat([exact.x0(one[None], float(s)) for one, s in zip(x, sigma, strict=True)])

    sigmas = torch.linspace(1, 0, 9, dtype=torch.float64)
    wanted = euler(flow_denoiser, X, sigmas)
    torch.testing.assert_close(k_sampler("pf-ode-euler", flow=True)(flow_denoiser, X, sigmas, disable=True), wanted)

    class CONST:
        pass

    comfy, sampling, samplers = (SimpleNamespace() for _ in range(3))
    comfy.model_sampling, comfy.samplers, sampling.CONST = sampling, samplers, CONST
    samplers.KSAMPLER = lambda function, options: lambda *of, **more: function(*of, **more, **options)
    for name, module in (("comfy", comfy), ("comfy.model_sampling", sampling), ("comfy.samplers", samplers)):
        monkeypatch.setitem(sys.modules, name, module)
    node = runpy.run_path(str(Path(__file__).parent.parent / "examples/comfyui/__init__.py"))["NODE_CLASS_MAPPINGS"][
        "ScoreflowSampler"
    ]
    assert (
        "unipc" in node.INPUT_TYPES()["required"]["name"][0] and "dpm-adaptive" not in node.INPUT_TYPES()["required"]["name"][0]
    )

    class Model:
        def __init__(self, sampling, net):
            self.inner_model, self.net = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling)), net

        def __call__(self, x, sigma, **more):
            return self.net(x, sigma, **more)

    (sampler,) = node().get_sampler("pf-ode-euler", 0)
    torch.testing.assert_close(sampler(Model(CONST(), flow_denoiser), X, sigmas, disable=True), wanted)
    levels = torch.tensor([*LEVELS, 0.0], dtype=torch.float64)
    (sampler,) = node().get_sampler("ddim", 0)
    out = sampler(Model(None, denoiser), 80 * X, levels, disable=True)
    torch.testing.assert_close(out, euler(denoiser, 80 * X, levels), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: k_sampler("dpm-adaptive"), "is not made of rows"),
        (lambda: k_sampler("ddim")(denoiser, X, torch.tensor([1.0, 2.0]), disable=True), "sigmas must fall"),
        (lambda: k_sampler("ddim")(denoiser, X, torch.tensor([1.0]), disable=True), "sigmas must fall"),
    ],
)
def test_k_samplers_refuse(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# -- DDPM codebases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("mean", ["EPSILON", "START_X"])
def test_guided_diffusion(mean, rescale):
    """Labels as `_scale_timesteps` gives them, and x̂_0 by its formula."""
    told = []

    def net(x, timesteps, y=None):
        told.append(timesteps.tolist())
        return torch.cat([torch.sin(x), x], 1)

    betas = np.linspace(1e-4, 0.02, 500)
    kind = SimpleNamespace(name=mean)
    model = from_guided_diffusion(net, SimpleNamespace(betas=betas, model_mean_type=kind, rescale_timesteps=rescale))
    bar = np.cumprod(1 - betas)[99]
    wanted = (X - math.sqrt(1 - bar) * torch.sin(X)) / math.sqrt(bar) if mean == "EPSILON" else torch.sin(X)
    torch.testing.assert_close(model.x0(X, 100 / 500), wanted, rtol=1e-9, atol=1e-9)
    assert told[0] == pytest.approx([99 * (2.0 if rescale else 1.0)] * 4)
    _, variance_output = model.evaluate(X, 0.2)
    torch.testing.assert_close(variance_output, X)
    for labels in (range(499), [*range(499), 1000], [0] * 500):
        with pytest.raises(ValueError, match="timestep_map must have 500 rising labels below 1000"):
            from_guided_diffusion(net, SimpleNamespace(betas=betas, original_num_steps=1000, timestep_map=labels))
    with pytest.raises(ValueError, match="model_mean_type must be one of EPSILON, START_X"):
        from_guided_diffusion(net, SimpleNamespace(betas=betas, model_mean_type=SimpleNamespace(name="PREVIOUS_X")))
    with pytest.raises(TypeError, match="diffusion must have betas"):
        from_guided_diffusion(net, 3)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("kept", [[0, 111, 222, 333, 444], [3, 4, 10, 100, 499], list(range(500))])
def test_spaced_diffusion(kept, rescale):
    """The kept nodes have the ᾱ and the labels of the whole chain: `ddim` on them is `ddim` on those nodes of the whole."""
    told = []

    def net(x, timesteps):
        told.append(float(timesteps[0]))
        return torch.cat([torch.sin(x) * (1 + timesteps[:, None] / 1000), x], 1)

    betas = np.linspace(1e-4, 0.02, 500)
    bar = np.cumprod(1 - betas)[kept]
    spaced = {"betas": 1 - bar / np.concatenate(([1.0], bar[:-1])), "timestep_map": kept, "original_num_steps": 500}
    more = {"model_mean_type": SimpleNamespace(name="EPSILON"), "rescale_timesteps": rescale}
    model = from_guided_diffusion(net, SimpleNamespace(**spaced, **more))
    whole = from_guided_diffusion(net, SimpleNamespace(betas=betas, **more))
    sol = sf.solve(model, X, "ddim", steps=len(kept))
    assert told == pytest.approx([k * (2.0 if rescale else 1.0) for k in reversed(kept)], abs=1e-9)
    wanted = sf.solve(whole, X, "ddim", grid=[*((k + 1) / 500 for k in reversed(kept)), 0.0])
    torch.testing.assert_close(sol.x, wanted.x, rtol=1e-9, atol=1e-9)
    model(X, 1.5 / len(kept))
    assert told[-1] == pytest.approx((kept[0] + kept[1]) / 2 * (2.0 if rescale else 1.0))


class VPSDE:
    beta_0, beta_1, N = 0.1, 20.0, 1000


class subVPSDE(VPSDE):
    pass


class VESDE:
    sigma_min, sigma_max, N = 0.01, 50.0, 1000


def test_score_sde():
    """`get_score_fn` there: labels 999·t and −out/σ on VP and sub-VP; on VE the noise level and the output itself."""
    told = []

    def net(x, labels):
        told.append(float(labels[0]))
        return torch.sin(x)

    t, integral = 0.3, 0.1 * 0.3 + 0.5 * 19.9 * 0.09
    for sde, std in ((VPSDE(), math.sqrt(-math.expm1(-integral))), (subVPSDE(), -math.expm1(-integral))):
        torch.testing.assert_close(from_score_sde(net, sde).score(X, t), -torch.sin(X) / std, rtol=1e-9, atol=1e-9)
    assert told == pytest.approx([299.7] * 2)
    model = from_score_sde(net, VESDE())
    torch.testing.assert_close(model.score(X, t), torch.sin(X))
    assert told[-1] == pytest.approx(model.path.sigma(t))
    with pytest.raises(ValueError, match="sde must be one of vpsde, subvpsde, vesde"):
        from_score_sde(net, SimpleNamespace())


def test_score_sde_by_discrete_levels():
    """VE, `get_score_fn` there: label round((1 − t)(N − 1)) at σ_min (σ_max/σ_min)^t of its t; none below σ_min."""
    told = []

    def net(x, labels):
        assert labels.dtype == torch.int64
        told.append(int(labels[0]))
        return torch.sin(x)

    model, times = from_score_sde(net, VESDE(), continuous=False), [0.0, 0.1234, 0.5003, 0.77, 1.0]
    for t in times:
        at = model.path.time(-math.log(0.01 * 5000**t))
        torch.testing.assert_close(model.score(X, at), torch.sin(X))
    assert told == [round((1 - t) * 999) for t in times]
    model.score(X, 1e-6)
    assert told[-1] == 999


# -- flows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("data_at", [0, 1])
def test_velocities_in_either_direction(data_at, time_first):
    """Euler in the network's own time, to the data, is `pf-ode-euler` on the same times."""
    exact = DATA.model(sf.Flow())

    def exact_velocity(x, tau):
        return torch.cat([exact(one[None], float(s), "flow") for one, s in zip(x, tau, strict=True)])

    def own(x, t):
        return -exact_velocity(x, 1 - t) if data_at else exact_velocity(x, t)

    net = (lambda t, x: own(x, t)) if time_first else own
    model = from_velocity(net, data_at=data_at)
    x, ends = X, torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    times = ends if data_at else ends.flip(0)
    for a, b in pairwise(times):
        x = x + (b - a) * own(x, a.expand(4))
    wanted = sf.solve(model, X, "pf-ode-euler", grid=ends.flip(0).tolist()).x
    torch.testing.assert_close(wanted, x, rtol=1e-9, atol=1e-9)


def test_velocities_told_a_longer_time_and_what_is_refused():
    told = []

    def net(x, t):
        told.append(float(t[0]))
        return x

    from_velocity(net, data_at=0, scale=1000)(X, 0.25, "flow")
    from_velocity(net, data_at=1, scale=1000)(X, 0.25, "flow")
    assert told == [250.0, 750.0]
    for wrong in (2, True, "1"):
        with pytest.raises(ValueError, match="data_at must be 0 or 1"):
            from_velocity(net, data_at=wrong)


def test_a_network_on_a_long_time():
    """Constant β on [0, 10] is `VPSDE(10 β, 10 β)` told 10 t."""
    told = []
    model = sf.ScoreModel(lambda x, t: told.append(float(t[0])) or x, sf.VPSDE(20.0, 20.0), "score", time=("scaled", 10))
    model.score(X, 0.3)
    assert told == [3.0] and model.path.alpha(0.3) == pytest.approx(math.exp(-0.5 * 2.0 * 3.0))
    with pytest.raises(ValueError, match="time's scale must be a finite number > 0"):
        sf.ScoreModel(lambda x, t: x, sf.VPSDE(), time=("scaled", -1))


def test_a_scaled_time_is_kept_in_a_file(tmp_path):
    model = sf.ScoreModel(sf.nets.MLP(3, width=8), sf.VPSDE(), time=("scaled", 999))
    sf.save_model(model, tmp_path / "m.safetensors")
    again = sf.load_model(tmp_path / "m.safetensors")
    assert again.time == ("scaled", 999.0)
    torch.testing.assert_close(again.eps(X, 0.3), model.eps(X, 0.3))
