"""The fixture `scoreflow_audit` of pytest: a sampler that does not pass fails the test, with the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from scoreflow._audit.audit import Audit


@pytest.fixture
def scoreflow_audit() -> Callable[..., Audit]:
    """`scoreflow_audit(sampler, steps=20, waive=("levels",), …)`: as `sf.audit`, and asserts that it passes.

    `same="ddim"` asserts which registered sampler it is, too.
    """

    def check(sampler: Any, steps: int = 20, *, same: str | None = None, **options: Any) -> Audit:
        __tracebackhide__ = True
        from scoreflow._audit.audit import audit

        found = audit(sampler, steps, **options)
        if not found.passed:
            pytest.fail(str(found), pytrace=False)
        if same is not None and same not in found.same:
            pytest.fail(f"it is not {same}\n{found}", pytrace=False)
        return found

    return check
