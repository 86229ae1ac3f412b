"""Samplers of scoreflow as SAMPLER nodes of ComfyUI.

Put this folder into ComfyUI/custom_nodes, `pip install scoreflow` into ComfyUI's environment, and give the node's output to
SamplerCustom. Sigmas come from ComfyUI's scheduler nodes; stochastic samplers take their noise from the node's seed.
"""

import comfy.model_sampling
from comfy.samplers import KSAMPLER

import scoreflow as sf
from scoreflow.interop import k_sampler

NAMES = [line.name for line in sf.samplers() if isinstance(sf.get_sampler(line.name), sf.Linear)]


def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, *, name, seed):
    """The k-diffusion function, on a flow's path where the model is one."""
    inner = model
    while not hasattr(inner, "model_sampling") and hasattr(inner, "inner_model"):
        inner = inner.inner_model
    flow = isinstance(getattr(inner, "model_sampling", None), comfy.model_sampling.CONST)
    return k_sampler(name, flow=flow)(model, x, sigmas, extra_args, callback, disable, seed=seed)


class ScoreflowSampler:
    RETURN_TYPES = ("SAMPLER",)
    CATEGORY = "sampling/custom_sampling/samplers"
    FUNCTION = "get_sampler"

    @classmethod
    def INPUT_TYPES(cls):
        seed = ("INT", {"default": 0, "min": 0, "max": 2**63 - 1})
        return {"required": {"name": (NAMES, {"default": "unipc"}), "seed": seed}}

    def get_sampler(self, name, seed):
        return (KSAMPLER(sample, {"name": name, "seed": seed}),)


NODE_CLASS_MAPPINGS = {"ScoreflowSampler": ScoreflowSampler}
NODE_DISPLAY_NAME_MAPPINGS = {"ScoreflowSampler": "scoreflow sampler"}
