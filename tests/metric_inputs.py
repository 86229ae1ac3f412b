"""Figures of metrics on given samples, for the tests of studies."""

import importlib.util
import sys
import types

from problems import states

from scoreflow.studies.metrics import METRICS, MetricInput

if (found := importlib.util.find_spec("torch_fidelity")) and not importlib.util.find_spec("torchvision"):
    # The package asks for torchvision on import, and torchmetrics imports it where it is; the files in use do not need it.
    package = types.ModuleType("torch_fidelity")
    package.__spec__, package.__path__ = found, list(found.submodule_search_locations)
    sys.modules.setdefault("torch_fidelity", package)


def same(x):
    """The states as features."""
    return x


def value(name, x, y=None, **more):
    """The one figure of a metric."""
    (found,) = METRICS[name](MetricInput(x, more.pop("seed", 0), data=y, features=same, **more)).values()
    return found


def figures(name, x, y=None, **more):
    """The figures of a metric by their parts."""
    inputs = MetricInput(x, more.pop("seed", 0), data=y, features=same, **more)
    return {figure.partition("/")[2]: v for figure, v in METRICS[name](inputs).items()}


def two(n, m, *shape, seed=0):
    """Samples and data of different laws."""
    return 0.8 * states(n, *shape, seed=2 * seed) + 0.3, states(m, *shape, seed=2 * seed + 1)
