"""The fixture `scoreflow_audit` of pytest: a sampler that does not pass fails the test, with the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import scoreflow as sf


@pytest.fixture
def scoreflow_audit() -> Callable[..., sf.Audit]:
    """`scoreflow_audit(sampler, steps=20, waive=("levels",), …)`: as `sf.audit`, and asserts that it passes.

    `same="ddim"` asserts which registered sampler it is, too.
    """

    def check(sampler: Any, steps: int = 20, *, same: str | None = None, **options: Any) -> sf.Audit:
        __tracebackhide__ = True
        found = sf.audit(sampler, steps, **options)
        if not found.passed:
            pytest.fail(str(found), pytrace=False)
        if same is not None and same not in found.same:
            pytest.fail(f"it is not {same}\n{found}", pytrace=False)
        return found

    return check
