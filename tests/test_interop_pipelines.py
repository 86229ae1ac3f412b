"""Stable Diffusion, image to image, Stable Diffusion 3, Flux and DiT with random weights: as `solve`, to 1e-5; a video."""

import math
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, on import
    transformers, diffusers = pytest.importorskip("transformers"), pytest.importorskip("diffusers")
    SD, SDImage, SD3, SD3Image = (
        getattr(diffusers, f"StableDiffusion{name}Pipeline") for name in ("", "Img2Img", "3", "3Img2Img")
    )  # imported when named
    Flux, DiT, Video = diffusers.FluxPipeline, diffusers.DiTPipeline, diffusers.StableVideoDiffusionPipeline

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
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, shift_factor=0.1,
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


@pytest.fixture(scope="module")
def sd3():
    torch.manual_seed(0)
    return diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
    ).eval()  # fmt: skip


MORE = {f"{kind}_{k}": None for kind in NONE for k in (2, 3)}


def moved(steps, shift):
    """The uniform times of a flow, moved."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * u / (1 + (shift - 1) * u)).tolist()


@pytest.mark.parametrize("sampler", ["pf-ode-euler", "unipc", "dpm-solver++", "auto"])
def test_a_flow(sampler, sd3, vae):
    pipe = quiet(SD3(transformer=sd3, scheduler=FLOW, vae=vae, **NONE, **MORE))
    pipe.scheduler = DiffusersScheduler.from_config(pipe.scheduler.config, sampler=sampler, nfe=8)
    out = pipe(**PROMPT, **POOLED, latents=LATENTS, num_inference_steps=8, height=16, width=16).images
    pooled, negative = POOLED.values()
    model = guided(sd3, FLOW, encoder_hidden_states=NEGATIVE, pooled_projections=negative)
    plan = sf.plan(sampler, model.path, grid=moved(8, 3.0))
    wanted = sf.solve(model, LATENTS, plan, encoder_hidden_states=POSITIVE, pooled_projections=pooled).x
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


def test_a_flow_from_an_image(sd3, vae):
    """From the call that strength says, on noised data, and the rest of the moved times."""
    pipe = quiet(SD3Image(transformer=sd3, scheduler=FLOW, vae=vae, **NONE, **MORE))
    pipe.scheduler = DiffusersScheduler.from_config(FLOW, sampler="unipc", nfe=10)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    out = pipe(**PROMPT, **POOLED, image=images, strength=0.6, num_inference_steps=10, height=16, width=16,
               generator=torch.Generator().manual_seed(6)).images  # fmt: skip
    again = torch.Generator().manual_seed(6)
    with torch.no_grad():
        x_0 = vae.encode(2 * images - 1).latent_dist.sample(again)
    x_0 = (x_0 - vae.config.shift_factor) * vae.config.scaling_factor
    pooled, negative = POOLED.values()
    model, times = guided(sd3, FLOW, encoder_hidden_states=NEGATIVE, pooled_projections=negative), moved(10, 3.0)[4:]
    x_t = model.path.q_sample(x_0, times[0], torch.randn(x_0.shape, generator=again))
    wanted = sf.solve(model, x_t, "unipc", grid=times, encoder_hidden_states=POSITIVE, pooled_projections=pooled).x
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


def test_flux(vae):
    """Packed latents, its own time, embedded guidance, and the shift that the pipeline computes from their number."""
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    ).eval()  # fmt: skip
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = quiet(Flux(theirs, vae, transformer=net, **NONE, text_encoder_2=None, tokenizer_2=None))
    latents = pipe._pack_latents(LATENTS, 2, 4, 8, 8)
    pooled, _ = POOLED.values()
    more = {"prompt_embeds": POSITIVE, "pooled_prompt_embeds": pooled, "guidance_scale": 3.5, "latents": latents}
    more |= {"height": 16, "width": 16, "output_type": "latent"}
    model = from_diffusers(net, theirs)
    mu = 0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256)  # of 16 tokens
    conditions = {
        "img_ids": sf.shared(pipe._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32)),
        "txt_ids": sf.shared(torch.zeros(5, 3)), "guidance": torch.full((2,), 3.5),
        "encoder_hidden_states": POSITIVE, "pooled_projections": pooled,
    }  # fmt: skip
    out = pipe(**more, num_inference_steps=8).images
    for sampler, steps, given in (("pf-ode-euler", 8, {}), ("unipc", 8, {"nfe": 8}), ("pf-ode-heun", 4, {"nfe": 9})):
        pipe.scheduler = DiffusersScheduler.from_config(theirs, sampler=sampler, **given)
        found = pipe(**more, num_inference_steps=8).images
        assert len(pipe.scheduler.timesteps) == given.get("nfe", 8)
        grid = moved(len(pipe.scheduler.timesteps) if steps == 8 else 5, math.exp(mu))
        torch.testing.assert_close(found, sf.solve(model, latents, sampler, grid=grid, **conditions).x, rtol=1e-5, atol=1e-5)
        if sampler == "pf-ode-euler":
            torch.testing.assert_close(found, out, rtol=1e-5, atol=1e-5)


def test_classes_and_a_learned_variance(vae):
    """DiT, whose pipeline guides, and drops the variance."""
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        norm_type="ada_norm_zero",
    ).eval()  # fmt: skip
    pipe = quiet(DiT(net, vae, CHAIN))
    pipe.scheduler = DiffusersScheduler.from_config(CHAIN, sampler="dpm-solver++", nfe=6)
    out = pipe([3, 7], generator=torch.Generator().manual_seed(1), num_inference_steps=6, output_type="pt").images
    model = guided(net, CHAIN, y=torch.full((2,), 1000))
    plan = sf.plan("dpm-solver++", model.path, nfe=6)
    with torch.no_grad():
        latents = sf.solve(model, drawn(2, 4, 8, 8, seed=1), plan, y=torch.tensor([3, 7])).x
        wanted = (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(torch.as_tensor(out), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
def test_a_video():
    """Stable Video Diffusion, whose scheduler scales the states and tells ¼ log σ: its own Euler is `ddim` on its levels."""
    torch.manual_seed(0)
    net = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8, block_out_channels=(32, 64), num_attention_heads=(2, 4), cross_attention_dim=16, layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"), addition_time_embed_dim=32,
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), projection_class_embeddings_input_dim=96,
    ).eval()  # fmt: skip
    small = {"hidden_size": 16, "projection_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    theirs = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction", sigma_min=0.002,
        sigma_max=700.0, timestep_spacing="leading", timestep_type="continuous", use_karras_sigmas=True,
    )  # fmt: skip
    encoder = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**small, image_size=16, patch_size=8))
    vae = diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2)
    pipe = quiet(Video(vae.eval(), encoder.eval(), net, theirs, transformers.CLIPImageProcessor(crop_size=16, size=16)))

    def frames(**steps):
        image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1)
        return pipe(image, height=16, width=16, num_frames=2, output_type="latent", generator=generator, **steps).frames

    wanted = frames(num_inference_steps=5)
    pipe.scheduler = DiffusersScheduler.from_config(theirs, sampler="ddim")
    torch.testing.assert_close(frames(sigmas=theirs.sigmas.tolist()), wanted, rtol=1e-4, atol=1e-4)
