# SPDX-License-Identifier: Apache-2.0
"""The tests of the stream wait for no disk but where they say so."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others write to the same disk may hold up a sync for seconds."""
    monkeypatch.setattr(os, 'fsync', lambda fd: None)
