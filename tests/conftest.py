"""Settings for all tests: reproducible examples, no time limits, one thread."""

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("scoreflow", deadline=None, derandomize=True, max_examples=60, print_blob=True)
hypothesis.settings.load_profile("scoreflow")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_global_randomness():
    """No test may depend on torch's global generator."""
    torch.manual_seed(20_261_122)
