# SPDX-License-Identifier: Apache-2.0
"""The DevStack plugin runs with DevStack's functions replaced."""

import configparser
import subprocess
from pathlib import Path

import pytest

from virtlogd_driver import conf

ROOT = Path(__file__).parents[2]

_STACK = r"""
set -eu
DEST={tmp}/dest NOVA_CONF_DIR={tmp}/etc/nova HOST_IP=192.0.2.1
NOVA_INSTANCES_PATH={tmp}/instances
NOVA_CONF=$NOVA_CONF_DIR/nova.conf NOVA_CPU_CONF=$NOVA_CONF_DIR/nova-cpu.conf
function trueorfalse {{ local value=${{!2:-$1}}; echo "$value"; }}
function enable_service {{ echo "enable_service $*"; }}
function is_service_enabled {{ [[ $1 == n-cpu ]]; }}
function echo_summary {{ :; }}
function setup_develop {{ echo "setup_develop $*"; }}
function iniset {{ printf '[%s]\n%s = %s\n' "$2" "$3" "$4" >> "$1"; }}
function systemctl {{ echo "systemctl $*"; }}
function sudo {{ "$@"; }}
source {root}/devstack/settings
VIRTLOGD_DRIVER_DIR={root}
for phase in pre-install install post-config extra; do
    source <(sed 's,=/etc/,={tmp}/etc/,' \
        {root}/devstack/plugin.sh) stack $phase
done
"""


@pytest.fixture
def stack(tmp_path: Path) -> list[str]:
    """What DevStack was told; its files are below tmp_path."""
    (tmp_path / 'etc/nova/rootwrap.d').mkdir(parents=True)
    (tmp_path / 'etc/libvirt').mkdir()
    (tmp_path / 'etc/libvirt/qemu.conf').write_text(
        '# stdio_handler = "logd"\nstdio_handler = "file"\nuser = "root"\n')
    done = subprocess.run(
        ['bash', '-c', _STACK.format(tmp=tmp_path, root=ROOT)], check=True,
        capture_output=True, text=True,
        env={'PATH': '/usr/sbin:/usr/bin:/sbin:/bin',
             'VIRTLOGD_MAX_SIZE': '65536'})
    assert done.stderr == ''
    return done.stdout.splitlines()


def test_the_stack(stack: list[str], tmp_path: Path) -> None:
    assert stack == [
        'enable_service n-sproxy', f'setup_develop {ROOT}',
        'systemctl start virtlogd.service',
        'systemctl reload virtlogd.service']
    nova = configparser.ConfigParser(strict=False)
    nova.read(tmp_path / 'etc/nova/nova.conf')
    assert dict(nova['DEFAULT']) == {
        'compute_driver': 'virtlogd_driver.VirtlogdDriver'}
    assert nova['serial_console']['enabled'] == 'True'
    assert nova['serial_console']['proxyclient_address'] == '192.0.2.1'
    helpers = {name for name in nova.sections() if 'helper_command' in
               nova[name]}
    assert helpers == {'virtlogd_privileged', 'virtlogd_privileged_daemon',
                       'virtlogd_privileged_viewer'}
    for group in helpers:
        assert nova[group]['helper_command'].endswith(
            f' --config-file {tmp_path}/etc/virtlogd-driver/nova.conf')
    assert (tmp_path / 'etc/virtlogd-driver/nova.conf').read_text() == (
        f'[DEFAULT]\ninstances_path = {tmp_path}/instances\n')
    assert not nova.has_section(conf.GROUP.name)
    assert (tmp_path / 'etc/nova/rootwrap.d/virtlogd-driver.filters'
            ).stat().st_mode & 0o777 == 0o644
    assert (tmp_path / 'etc/libvirt/qemu.conf').read_text() == (
        '# stdio_handler = "logd"\nuser = "root"\nstdio_handler = "logd"\n')
    assert (tmp_path / 'etc/libvirt/virtlogd.conf').read_text() == (
        'max_size = 65536\n')
