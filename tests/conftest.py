"""Settings for all tests: reproducible examples, no time limits, one thread.

`pytest --hypothesis-profile=thorough` draws twenty times as many examples, other ones each time.
"""

import importlib
import importlib.util
import sys
import types

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("scoreflow", deadline=None, derandomize=True, max_examples=25, print_blob=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500, print_blob=True)
hypothesis.settings.load_profile("scoreflow")


SLOW = {
    "adaptive", "blackbox", "cli", "devices", "digits", "health", "image_conditions", "likelihood", "optimal", "orders",
    "peers", "readme", "stochastic", "trainer", "training", "training_config", "training_pairs", "training_reflow",
    "twelve_digits",
}  # fmt: skip
"""Modules that `pytest -m fast` leaves out, with those of studies."""


def pytest_collection_modifyitems(items):
    """`fast` is the first case of every test in the quick modules: under a minute."""
    seen = set()
    for item in items:
        module = item.path.stem.removeprefix("test_")
        test = (module, item.originalname)
        if module not in SLOW and not module.startswith("study") and test not in seen:
            item.add_marker("fast")
            seen.add(test)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_global_randomness():
    """No test may depend on torch's global generator."""
    torch.manual_seed(20_261_122)


@pytest.fixture(scope="module")
def few_floors():
    """Studies take a floor from 8 blocks of data, not from 32: where a test asks how sure it is, it has fewer blocks itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scoreflow.studies.sweep.FLOORS", 8)
        yield


@pytest.fixture
def few_grids(monkeypatch):
    """Tuning runs the samplers that there are on four grids, not on all: it takes a third of the time."""
    monkeypatch.setattr("scoreflow.tuning.screen.GRIDS", ("ode", "rectified", "karras"))


@pytest.fixture
def k_diffusion(monkeypatch):
    """The package without what it imports to train; its `utils` asks for torchvision, for images only."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        pytest.skip("k-diffusion is not installed")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "k_diffusion", package)
    if importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["torchvision.transforms"].functional = None
    yield importlib.import_module("k_diffusion.sampling")
    for name in ("sampling", "external", "utils"):
        sys.modules.pop(f"k_diffusion.{name}", None)
