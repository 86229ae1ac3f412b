"""What the tests of reports share: a study with a hostile name in it, studies made of numbers, and the traces of a chart."""

from contextlib import contextmanager

import scoreflow as sf
from scoreflow.studies.metrics import METRICS, metric
from scoreflow.studies.report import chart
from scoreflow.studies.store import Done, Measured, Store
from scoreflow.studies.sweep import Study

ODD = "<b>\"x\"</b></script><!-- & 'y' $z$ " + "long" * 15
"""A name that no page may read as its own, nor be widened by."""


@contextmanager
def studied():
    """Three samplers and four metrics, one of them with a hostile name, for as long as it is used."""

    @metric(ODD, positive=False)
    def odd(scene):
        """The mean of `x < 1 & "y"`, <i>as it is</i>."""
        return float(scene.x.mean())

    yield sf.study(
        "oracle:ring", ["ddim", "ddpm", "dpm-solver++"], nfe=[5, 10], n=16, seeds=3,
        metrics=["trajectory", "energy", "modes", ODD], reference="scipy(rtol=1e-4)",
    )  # fmt: skip
    del METRICS[ODD]


def made(cells, name="modes", steps=False, network="made"):
    """A study of values: {(kind, sampler, budget): blocks}; evaluations are the budget, and twice the steps."""
    store = Store(None, {"network": network, "path": "none", "n": "2"})
    for (kind, label, n), blocks in cells.items():
        for seed, value in enumerate(blocks):
            done = Done(float(2 * n if steps else n), 0.0, None, (Measured(name, "", {name: value}),))
            spec = (label, None, None, n) if steps else (label, None, n, None)
            store.put(f"{kind} {label} {n} {seed}", kind, spec, seed, done)
    return Study(store)


def curves(study, figure):
    """The traces of the samplers, by name."""
    return {line["name"]: line for line in chart(study, figure)["data"] if "error_y" in line}
