# SPDX-License-Identifier: Apache-2.0
"""The commands read what nova-compute reads, and start helpers as it does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nova import conf as nova_conf
from nova import utils
from oslo_config import cfg

from virtlogd_driver.cmd import configuration

ROOT = Path(__file__).parents[3]


def read(tmp_path: Path, text: str = '', *arguments: str) -> cfg.ConfigOpts:
    file = tmp_path / 'nova.conf'
    file.write_text(text)
    config = cfg.ConfigOpts()
    configuration.read(config, ['--config-file', str(file), *arguments])
    return config


def test_the_options_are_as_nova_has_them() -> None:
    for group, options in configuration._NOVA.items():
        known = nova_conf.CONF if group is None else nova_conf.CONF[group]
        for option in options:
            theirs = known._opts if group is None else known._group._opts
            their = theirs[option.dest]['opt']
            assert type(their.type) is type(option.type)
            # What nova asks for has no default here.
            if option.name != 'compute_driver':
                assert their.default == option.default


def test_values_refer_to_what_those_of_nova_do(tmp_path: Path) -> None:
    config = read(tmp_path, (
        '[DEFAULT]\nmy_ip = 192.0.2.7\npybasedir = /srv\n'
        'instances_path = $pybasedir/instances\n'
        '[serial_console]\nproxyclient_address = $my_ip\n'))
    configuration.check(config)
    assert config.serial_console.proxyclient_address == '192.0.2.7'
    assert config.state_path == '/srv'
    assert config.instances_path == '/srv/instances'


@pytest.mark.parametrize('text', [
    '',
    '[DEFAULT]\nrootwrap_config = /etc/other/rootwrap.conf\n',
    '[workarounds]\ndisable_rootwrap = true\n'])
def test_helpers_are_started_as_nova_compute_starts_them(
        tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read(tmp_path, text)
    monkeypatch.setattr(utils, 'CONF', config)
    sudo, *rest = utils.get_root_helper().split()
    assert configuration.root_helper(config) == [sudo, '-n', *rest]


def test_a_helper_that_is_no_command(tmp_path: Path) -> None:
    with pytest.raises(cfg.Error, match='rootwrap_config = /etc/"nova in '):
        read(tmp_path, '[DEFAULT]\nrootwrap_config = /etc/"nova\n')


def test_files_of_nova_compute_are_found(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian and Ubuntu have it: the second file has the last word."""
    home = tmp_path / '.nova'
    home.mkdir()
    (home / 'nova.conf').write_text(
        '[DEFAULT]\ncompute_driver = virtlogd_driver.VirtlogdDriver\n')
    (home / 'nova-compute.conf').write_text(
        '[DEFAULT]\ncompute_driver = libvirt.LibvirtDriver\n')
    monkeypatch.setenv('HOME', str(tmp_path))
    config = cfg.ConfigOpts()
    configuration.read(config, [])
    assert config.compute_driver == 'libvirt.LibvirtDriver'
    assert config.config_file == [str(home / 'nova.conf'),
                                  str(home / 'nova-compute.conf')]


@pytest.mark.parametrize(('given', 'taken'), [
    ('check --config-file /a', '--config-file /a check'),
    ('check --config-file=/a --json', '--config-file=/a check --json'),
    ('--config-dir /a check --config-file /b',
     '--config-dir /a --config-file /b check'),
    ('list --connect test:///default', '--connect test:///default list'),
    ('show -c 7 guest', 'show -c 7 guest'),
    ('show -- --config-file', 'show -- --config-file'),
    ('check --config-file', '--config-file check'),
])
def test_an_option_may_come_after_the_command(given: str, taken: str) -> None:
    assert configuration._options_first(given.split()) == taken.split()


@pytest.mark.parametrize(('command', 'code'), [
    ('status', 255), ('console', 1)])
def test_a_file_that_cannot_be_read_is_one_line(
        command: str, code: int) -> None:
    ran = subprocess.run(
        [sys.executable, '-m', f'virtlogd_driver.cmd.{command}', 'check',
         '--config-file', '/none/nova.conf'], capture_output=True, text=True,
        check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert ran.returncode == code
    (line,) = ran.stderr.splitlines()
    assert '/none/nova.conf' in line


@pytest.mark.parametrize(('text', 'said'), [
    (b'[virtlogd]\nhealth_interval = 1m\n', 'health_interval'),
    (b'[virtlogd]\nfallback_device = pty\n', 'fallback_device'),
    (b'[serial_console]\nenabled = maybe\n', 'enabled'),
    (b'[DEFAULT]\nhost = compute 1\n', 'option host'),
    (b'[DEFAULT]\n# gr\xf6sser\n', "not UTF-8, .* after '# gr'")])
@pytest.mark.parametrize(('command', 'code'), [
    ('status', 255), ('console', 1)])
def test_what_nova_compute_would_not_start_with_is_one_line(
        tmp_path: Path, command: str, code: int, text: bytes,
        said: str) -> None:
    file = tmp_path / 'nova.conf'
    file.write_bytes(text)
    ran = subprocess.run(
        [sys.executable, '-m', f'virtlogd_driver.cmd.{command}', 'check',
         '--config-file', str(file)], capture_output=True, text=True,
        check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert ran.returncode == code
    assert ran.stdout == ''
    (line,) = ran.stderr.splitlines()
    assert re.search(said, line)
