# SPDX-License-Identifier: Apache-2.0
"""A little is tried of what ``python -m tests.fuzz`` tries for longer."""

import hypothesis
import pytest

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize('name', TARGETS)
def test_only_what_is_promised_comes_out(name: str) -> None:
    hypothesis.settings(
        max_examples=20, database=None, deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck))(
            TARGETS[name]())()
