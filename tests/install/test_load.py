# SPDX-License-Identifier: Apache-2.0
"""nova finds the driver however the two of them are installed."""

import pathlib
import subprocess
import sys
import sysconfig
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOVA_SITE = pathlib.Path(sysconfig.get_path('purelib'))

LOAD = """
import nova.conf
from nova.virt import driver
from nova.virt.libvirt.driver import LibvirtDriver
loaded = driver.load_compute_driver(None, 'virtlogd_driver.VirtlogdDriver')
assert isinstance(loaded, LibvirtDriver)
assert loaded.capabilities['supports_migrate_to_same_host'] is False
import virtlogd_driver, nova
print(type(loaded).__module__, virtlogd_driver.__file__, nova.__file__)
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp('wheel')
    _pip('wheel', '--no-deps', '-w', directory, ROOT)
    (made,) = directory.glob('virtlogd_driver-*.whl')
    return made


def _pip(*args: object) -> None:
    _run(sys.executable, '-m', 'pip', '--quiet', *args)


def _run(*command: object, check: bool = True) -> str:
    done = subprocess.run(
        [str(c) for c in command], cwd='/', text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if check:
        assert done.returncode == 0, done.stdout
    return done.stdout


def _environment(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A new virtual environment: its python and its site directory."""
    venv.create(path, with_pip=False)
    (site,) = path.glob('lib/python*/site-packages')
    return path / 'bin/python', site


def _nova_elsewhere(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """nova in another site directory, as a distribution's package is."""
    python, site = _environment(path)
    (site / 'nova.pth').write_text(f'{NOVA_SITE}\n')
    return python, site


def _nova_beside(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """nova in the site directory that the driver goes to."""
    python, site = _environment(path)
    for entry in NOVA_SITE.iterdir():
        if 'virtlogd' not in entry.name:
            (site / entry.name).symlink_to(entry)
    return python, site


@pytest.mark.parametrize('layout', [_nova_elsewhere, _nova_beside])
@pytest.mark.parametrize('editable', [False, True],
                         ids=['wheel', 'editable'])
def test_load_compute_driver(layout, editable, wheel, tmp_path) -> None:
    python, site = layout(tmp_path / 'env')
    what = ['--editable', ROOT] if editable else [wheel]
    _run(sys.executable, '-m', 'pip', '--quiet', '--python', python,
         'install', '--no-deps', *what)
    module, plugin, nova = _run(python, '-c', LOAD).split()[-3:]
    assert module == 'virtlogd_driver.driver'
    assert pathlib.Path(plugin).is_relative_to(ROOT if editable else site)
    assert pathlib.Path(nova).is_relative_to(
        site if layout is _nova_beside else NOVA_SITE)


def test_the_real_nova_compute_loads_it(wheel, tmp_path) -> None:
    """Up to where it wants a message bus, which is not there."""
    python, _ = _nova_elsewhere(tmp_path / 'env')
    _run(sys.executable, '-m', 'pip', '--quiet', '--python', python,
         'install', '--no-deps', wheel)
    config = tmp_path / 'nova.conf'
    config.write_text(f"""
[DEFAULT]
compute_driver = virtlogd_driver.VirtlogdDriver
state_path = {tmp_path}
transport_url = kombu+memory://
rpc_response_timeout = 1
[oslo_concurrency]
lock_path = {tmp_path}
[compute]
[serial_console]
enabled = true
""")
    done = subprocess.run(
        ['timeout', '20', python, '-c',
         'from nova.cmd.compute import main; main()',
         '--config-file', config, '--nodebug'],
        cwd='/', capture_output=True, text=True, check=False)
    log = done.stdout + done.stderr
    assert "Loading compute driver 'virtlogd_driver.VirtlogdDriver'" in log
    assert 'Compute driver virtlogd_driver 0.1.0 on nova' in log, log
    assert 'Unable to load the virtualization driver' not in log


def test_without_the_driver_the_name_is_not_there(tmp_path) -> None:
    """The two tests above can fail."""
    python, _ = _nova_elsewhere(tmp_path / 'env')
    shown = _run(python, '-c', LOAD, check=False)
    assert "No module named 'nova.virt.virtlogd_driver'" in shown
