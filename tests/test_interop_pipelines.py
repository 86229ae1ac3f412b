"""Stable Diffusion, image to image and Stable Diffusion 3 with random weights: as `solve`, to 1e-5."""

import warnings

import pytest
import torch

pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, on import
    diffusers = pytest.importorskip("diffusers")
    SD, SDImage, SD3 = (
        getattr(diffusers, f"StableDiffusion{name}Pipeline") for name in ("", "Img2Img", "3")
    )  # imported when named

import scoreflow as sf
from scoreflow.interop import DiffusersScheduler, from_diffusers

CHAIN = diffusers.DDIMScheduler(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1, set_alpha_to_one=False
)
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
NONE = {"text_encoder": None, "tokenizer": None}


def drawn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


POSITIVE, NEGATIVE, LATENTS = drawn(2, 5, 12, seed=0), drawn(2, 5, 12, seed=1), drawn(2, 4, 8, 8, seed=2)
POOLED = {"pooled_prompt_embeds": drawn(2, 8, seed=3), "negative_pooled_prompt_embeds": drawn(2, 8, seed=4)}
PROMPT = {"prompt_embeds": POSITIVE, "negative_prompt_embeds": NEGATIVE, "output_type": "latent", "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, norm_num_groups=4,
    ).eval()  # fmt: skip


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guided(net, scheduler, **null):
    return sf.ClassifierFree(from_diffusers(net, scheduler), 4.0, null=null)


@pytest.mark.parametrize(
    "sampler", ["ddim", "unipc", "dpm-solver++", "edm", "auto", "ipndm", "res-2s", "pf-ode", "deis", "dpm-2"]
)
def test_stable_diffusion(sampler, unet, vae):
    pipe = quiet(SD(vae=vae, unet=unet, scheduler=CHAIN, safety_checker=None, feature_extractor=None,
                    requires_safety_checker=False, **NONE))  # fmt: skip
    pipe.scheduler = DiffusersScheduler.from_config(pipe.scheduler.config, sampler=sampler, nfe=10)
    out = pipe(**PROMPT, latents=LATENTS, num_inference_steps=10, height=16, width=16).images
    model = guided(unet, CHAIN, encoder_hidden_states=NEGATIVE)
    plan = sf.plan(sampler, model.path, nfe=10)  # the pipeline guides, and its scheduler does not know
    torch.testing.assert_close(out, sf.solve(model, LATENTS, plan, encoder_hidden_states=POSITIVE).x, rtol=1e-5, atol=1e-5)


def test_image_to_image(unet, vae):
    pipe = quiet(SDImage(vae=vae, unet=unet, scheduler=CHAIN, safety_checker=None, feature_extractor=None,
                         requires_safety_checker=False, **NONE))  # fmt: skip
    pipe.scheduler = DiffusersScheduler.from_config(pipe.scheduler.config, sampler="unipc", nfe=10)
    seen = []

    def look(pipe, i, t, inputs):
        seen.append(float(t))
        return inputs

    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    out = pipe(**PROMPT, image=images, strength=0.6, num_inference_steps=10, generator=torch.Generator().manual_seed(6),
               callback_on_step_end=look).images  # fmt: skip
    assert seen == pipe.scheduler.timesteps[4:].tolist()
    again = torch.Generator().manual_seed(6)
    with torch.no_grad():
        x_0 = vae.encode(2 * images - 1).latent_dist.sample(again) * vae.config.scaling_factor
    eps = torch.randn(x_0.shape, generator=again)
    model = guided(unet, CHAIN, encoder_hidden_states=NEGATIVE)
    plan = sf.plan("unipc", model.path, nfe=10)
    t = plan.evaluation_times[4]
    times = [t, *(u for u in plan.times if u < t)]
    x_t = model.path.q_sample(x_0, t, eps)
    wanted = sf.solve(model, x_t, "unipc", grid=times, encoder_hidden_states=POSITIVE).x
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["pf-ode-euler", "unipc", "dpm-solver++", "auto"])
def test_a_flow(sampler, vae):
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
    ).eval()  # fmt: skip
    more = {f"{kind}_{k}": None for kind in NONE for k in (2, 3)}
    pipe = quiet(SD3(transformer=net, scheduler=FLOW, vae=vae, **NONE, **more))
    pipe.scheduler = DiffusersScheduler.from_config(pipe.scheduler.config, sampler=sampler, nfe=8)
    out = pipe(**PROMPT, **POOLED, latents=LATENTS, num_inference_steps=8, height=16, width=16).images
    pooled, negative = POOLED.values()
    model = guided(net, FLOW, encoder_hidden_states=NEGATIVE, pooled_projections=negative)
    u = torch.linspace(1, 0, 9, dtype=torch.float64)
    times = (3 * u / (1 + 2 * u)).tolist()
    plan = sf.plan(sampler, model.path, grid=times)
    wanted = sf.solve(model, LATENTS, plan, encoder_hidden_states=POSITIVE, pooled_projections=pooled).x
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
