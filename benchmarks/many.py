"""How much the batch changes a sample of the zoo's networks on this machine.

    python benchmarks/many.py

Samples of 64 seeds by 10 evaluations in batches of 1, 7 and 64: the largest difference to the batch of 64, and how many
pixels are other ones when images are written in 8 bits.
"""

import tempfile

import torch
from rich.console import Console
from rich.table import Table

import scoreflow as sf
from scoreflow._sets.read import Kept
from scoreflow._sets.seeds import Uniform


def drawn(model, shape, sampler, batch):
    """The samples of seeds 0 to 63."""
    with tempfile.TemporaryDirectory() as folder:
        sf.generate(model, shape, range(64), folder, sampler, nfe=10, batch=batch, y=Uniform(10))
        return torch.stack([*Kept(folder)])


def main():
    table = Table("network", "dtype", "sampler", "batch", "largest difference to a batch of 64", "pixels that differ, of")
    for name, shape in (("digits", (1, 8, 8)), ("mnist", (1, 28, 28))):
        for dtype in (torch.float32, torch.float64):
            model = getattr(sf.zoo, name)(dtype=dtype)
            for sampler in ("auto", "ddpm"):
                whole = drawn(model, shape, sampler, 64)
                for batch in (1, 7):
                    x = drawn(model, shape, sampler, batch)
                    pixels = [((one.clamp(-1, 1) + 1) * 127.5).round() for one in (x, whole)]
                    other = f"{int((pixels[0] != pixels[1]).sum())} of {x.numel()}"
                    table.add_row(name, str(dtype)[6:], sampler, str(batch), f"{float((x - whole).abs().max()):.1e}", other)
    Console().print(table)


if __name__ == "__main__":
    main()
