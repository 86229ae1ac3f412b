"""A hash of what every registered sampler gives for one seed: two versions of the code that agree give the same lines.

python benchmarks/hashes.py > before.txt
"""

import hashlib

import torch

import scoreflow as sf
from scoreflow._samplers.step import SAMPLERS, VARIANTS

MIXTURE = sf.GaussianMixture([0.3, 0.7], [[1.0, 0.2, -0.5], [-1.0, 0.0, 0.5]], [0.2, 0.1])
PATHS = {"vp": sf.VPSDE(), "chain": sf.VPSDE.from_betas(sf.DDPMChain.linear().beta), "flow": sf.Flow(), "ve": sf.VESDE()}
BUDGET = {"restart": {"nfe": 60}, **{name: {"steps": 3} for name in ("dpm-adaptive", "gotta-go-fast", "scipy", "torchdiffeq")}}

for path_name, path in PATHS.items():
    model = MIXTURE.model(path)
    for name in ("auto", *SAMPLERS, *VARIANTS):
        own = VARIANTS.get(name, (name,))[0]
        for grid in (None, "uniform", "logsnr"):
            try:
                keywords = {**BUDGET.get(own, {"nfe": 12}), "grid": grid, "start": 1.0 if path.alpha(1.0) > 0 else 0.999}
                x = sf.sample(model, (4, 3), name, seed=[1, 2, 3, 4], dtype=torch.float64, **keywords)
                text = hashlib.blake2b(x.numpy().tobytes(), digest_size=8).hexdigest()
            except (ValueError, RuntimeError, FloatingPointError) as error:
                text = f"{type(error).__name__}: {error}"
            print(path_name, name, grid, text)
