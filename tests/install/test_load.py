# SPDX-License-Identifier: Apache-2.0
"""nova finds the driver however the two of them are installed."""

import os
import pathlib
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from importlib import metadata

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOVA_SITE = pathlib.Path(sysconfig.get_path('purelib'))

DRIVER_SAYS = ('Compute driver virtlogd_driver '
               f'{metadata.version("virtlogd-driver")} on nova')

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
    # What is installed is loaded, not a checkout that this run is given.
    env = {name: value for name, value in os.environ.items()
           if name != 'PYTHONPATH'}
    done = subprocess.run(
        [str(c) for c in command], cwd='/', text=True, check=False, env=env,
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
    assert module == 'virtlogd_driver.compute.driver'
    assert pathlib.Path(plugin).is_relative_to(ROOT if editable else site)
    assert pathlib.Path(nova).is_relative_to(
        site if layout is _nova_beside else NOVA_SITE)


@pytest.mark.parametrize('page', ['README.rst', 'doc/source/install.rst'])
def test_the_filters_are_where_the_page_says(page, wheel, tmp_path) -> None:
    python, _ = _environment(tmp_path / 'env')
    _run(sys.executable, '-m', 'pip', '--quiet', '--python', python,
         'install', '--no-deps', wheel)
    (line,) = [line.strip().removeprefix('# ')
               for line in (ROOT / page).read_text().splitlines()
               if 'cp $(' in line]
    target = ' /etc/nova/rootwrap.d/'
    assert line.endswith(target)
    _run('env', f'PATH={python.parent}:/usr/bin:/bin', 'sh', '-ec',
         f'{line.removesuffix(target)} {tmp_path}')
    name = 'virtlogd-driver.filters'
    assert (tmp_path / name).read_text() == (
        ROOT / 'etc/nova/rootwrap.d' / name).read_text()


COMPUTE = """
from nova.cmd.compute import main   # first: it chooses threads or eventlet
import http.server, json, threading, time
import nova.rpc
from nova import baserpc

def conductor():
    # nova-compute loads its driver once nova-conductor has answered a ping.
    import oslo_messaging
    while nova.rpc.TRANSPORT is None:
        time.sleep(0.05)
    nova.rpc.get_server(
        oslo_messaging.Target(topic='conductor', server='conductor'),
        [baserpc.BaseRPCAPI('conductor', None)]).start()

class Placement(http.server.BaseHTTPRequestHandler):
    # It asks for placement's versions, too.
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({'versions': [{
            'id': 'v1.0', 'min_version': '1.0', 'max_version': '1.39',
            'status': 'CURRENT', 'links': [{'rel': 'self', 'href': ''}],
        }]}).encode())

placement = http.server.HTTPServer(('127.0.0.1', @PORT@), Placement)
threading.Thread(target=placement.serve_forever, daemon=True).start()
threading.Thread(target=conductor, daemon=True).start()
main()
"""


def test_the_real_nova_compute_loads_it(wheel, tmp_path) -> None:
    """What the command nova-compute does, up to where libvirt is wanted."""
    python, _ = _nova_elsewhere(tmp_path / 'env')
    _run(sys.executable, '-m', 'pip', '--quiet', '--python', python,
         'install', '--no-deps', wheel)
    with socket.create_server(('127.0.0.1', 0)) as unused:
        port = unused.getsockname()[1]
    config = tmp_path / 'nova.conf'
    config.write_text(f"""
[DEFAULT]
compute_driver = virtlogd_driver.VirtlogdDriver
state_path = {tmp_path}
transport_url = fake://
[oslo_concurrency]
lock_path = {tmp_path}
[serial_console]
enabled = true
[placement]
auth_type = none
endpoint_override = http://127.0.0.1:{port}
""")
    log = tmp_path / 'log'
    with log.open('w') as output, subprocess.Popen(
            [python, '-c', COMPUTE.replace('@PORT@', str(port)),
             '--config-file', config], cwd='/',
            stdout=output, stderr=subprocess.STDOUT) as compute:
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and compute.poll() is None:
                if DRIVER_SAYS in log.read_text():
                    break
                time.sleep(0.1)
        finally:
            compute.kill()
    text = log.read_text()
    assert "Loading compute driver 'virtlogd_driver.VirtlogdDriver'" in text
    assert DRIVER_SAYS in text, text
    assert 'Unable to load the virtualization driver' not in text


def test_without_the_driver_the_name_is_not_there(tmp_path) -> None:
    """The two tests above can fail."""
    python, _ = _nova_elsewhere(tmp_path / 'env')
    shown = _run(python, '-c', LOAD, check=False)
    assert "No module named 'nova.virt.virtlogd_driver'" in shown
