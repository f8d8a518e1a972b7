# SPDX-License-Identifier: Apache-2.0
import importlib
import pathlib
import subprocess
import sys

import fixtures
import pytest

from virtlogd_driver.compute import finder


@pytest.fixture
def meta_path() -> None:
    with fixtures.MonkeyPatch('sys.meta_path', [
            f for f in sys.meta_path if f is not finder.NovaFinder]):
        yield


def test_nova_imports_the_driver(meta_path) -> None:
    finder.install()
    found = importlib.import_module('nova.virt.virtlogd_driver')
    from virtlogd_driver.compute import driver
    assert found.VirtlogdDriver is driver.VirtlogdDriver


def test_installed_once_and_last(meta_path) -> None:
    finder.install()
    finder.install()
    assert sys.meta_path.count(finder.NovaFinder) == 1
    assert sys.meta_path[-1] is finder.NovaFinder


@pytest.mark.parametrize('name', [
    'nova.virt.virtlogd_driver.driver', 'nova.virt', 'virtlogd_driver',
    'nova.virt.libvirt'])
def test_no_other_name_is_answered(name: str) -> None:
    assert finder.NovaFinder.find_spec(name, None) is None


def test_start_up_imports_nothing_but_the_finder() -> None:
    """What the .pth file costs each Python process."""
    pth = pathlib.Path(__file__).parents[3] / 'virtlogd_driver_nova.pth'
    code = (f'import sys; exec({pth.read_text()!r}); '
            'print([m for m in sys.modules if m.startswith('
            '("nova", "virtlogd", "oslo", "libvirt", "lxml"))])')
    shown = subprocess.check_output(
        [sys.executable, '-I', '-c',
         f'import sys; sys.path.append({str(pth.parent)!r}); {code}'],
        text=True)
    assert shown.strip() == str(
        ['virtlogd_driver', 'virtlogd_driver.compute',
         'virtlogd_driver.compute.finder'])
