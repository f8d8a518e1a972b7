# SPDX-License-Identifier: Apache-2.0
"""A guest is on the first of two hosts, with a virtlogd that answers."""

import pathlib

import pytest

from tests.unit.history.hosts import Pair, fill
from tests.unit.virtlogd.fake_virtlogd import FakeVirtlogd
from virtlogd_driver.history import history
from virtlogd_driver.virtlogd import privileged


@pytest.fixture
def virtlogd(monkeypatch: pytest.MonkeyPatch) -> FakeVirtlogd:
    fake = FakeVirtlogd()
    monkeypatch.setattr(privileged, 'probe', fake)
    monkeypatch.setattr(history, 'CLOSING', 0.02)
    return fake


@pytest.fixture
def pair(tmp_path: pathlib.Path, virtlogd: FakeVirtlogd) -> Pair:
    made = Pair(tmp_path / 'pair')
    fill(made.source.directory)
    return made
