# SPDX-License-Identifier: Apache-2.0
"""A policy that is made here tells what SELinux would refuse."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from virtlogd_driver.node import selinux
from virtlogd_driver.node.selinux import NEEDED, Denial

ROOT = Path(__file__).parents[3]
MODULE = ROOT / 'etc/selinux/virtlogd_nova.te'
VIRTLOGD = 'system_u:system_r:virtlogd_t:s0'
NOVA = 'system_u:object_r:nova_var_lib_t:s0'
LOG = 'system_u:object_r:virt_log_t:s0'


class FakePolicy(selinux.Policy):
    """A kernel with a policy.

    :ivar allowed: by class of object and type: the permissions
    :param new: the context of a new file
    """

    def __init__(self, directory: Path,
                 allowed: Mapping[tuple[str, str], tuple[str, ...]],
                 new: str = NOVA, enforce: str = '1') -> None:
        super().__init__(directory)
        self.allowed = allowed
        self.new = new
        (directory / 'enforce').write_text(enforce)
        for number, (kind, names) in enumerate(NEEDED.items(), 6):
            permissions = directory / 'class' / kind / 'perms'
            permissions.mkdir(parents=True)
            (permissions.parent / 'index').write_text(f'{number}')
            for bit, name in enumerate(('ioctl', *names), 1):
                (permissions / name).write_text(f'{bit}')

    def transact(self, question: str, text: str) -> str:
        source, target, number = text.split()
        if source != VIRTLOGD:
            raise OSError(22, 'Invalid argument')
        if question == 'create':
            return self.new + '\0'
        kind = list(NEEDED)[int(number) - 6]
        names = self.allowed.get((kind, target.split(':')[2]), ())
        mask = sum(1 << ('ioctl', *NEEDED[kind]).index(name) for name in names)
        return f'{mask:x} ffffffff 0 ffffffff 12 0'


EVERYTHING = {(kind, label): names for kind, names in NEEDED.items()
              for label in ('nova_var_lib_t', 'virt_log_t')}


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    def getxattr(path: str, name: str) -> bytes:
        assert name == 'security.selinux'
        return f'{NOVA}\0'.encode()
    monkeypatch.setattr(os, 'getxattr', getxattr)


@pytest.mark.usefixtures('labelled')
class TestDenial:

    def ask(self, policy: selinux.Policy,
            virtlogd: str = VIRTLOGD) -> Denial | None:
        return selinux.denial('/var/lib/nova/instances', policy, virtlogd)

    def test_nothing_is_allowed(self, tmp_path: Path) -> None:
        """As in the policies of the distributions."""
        found = self.ask(FakePolicy(tmp_path, {}))
        assert found is not None
        assert found.permissions == tuple(
            f'{kind} {name}' for kind in sorted(NEEDED)
            for name in NEEDED[kind])
        assert str(found).startswith(
            'SELinux does not let virtlogd (virtlogd_t) write logs in '
            '/var/lib/nova/instances (nova_var_lib_t): dir add_name, ')

    def test_everything_is_allowed(self, tmp_path: Path) -> None:
        assert self.ask(FakePolicy(tmp_path, EVERYTHING)) is None

    @pytest.mark.parametrize('kind', NEEDED)
    def test_one_thing_is_missing(self, tmp_path: Path, kind: str) -> None:
        found = self.ask(FakePolicy(tmp_path, {
            **EVERYTHING, (kind, 'nova_var_lib_t'): NEEDED[kind][:-1]}))
        assert found is not None
        assert found.permissions == (f'{kind} {NEEDED[kind][-1]}',)

    def test_a_new_file_gets_another_type(self, tmp_path: Path) -> None:
        """What nova-compute begins has the one of the directory."""
        for missing in ('virt_log_t', 'nova_var_lib_t'):
            directory = tmp_path / missing
            directory.mkdir()
            found = self.ask(FakePolicy(directory, {
                **EVERYTHING, ('file', missing): ('open', 'getattr')}, LOG))
            assert found is not None
            assert 'file append' in found.permissions

    def test_not_enforcing(self, tmp_path: Path) -> None:
        assert self.ask(FakePolicy(tmp_path, {}, enforce='0')) is None

    def test_no_selinux(self, tmp_path: Path) -> None:
        assert self.ask(selinux.Policy(tmp_path)) is None

    def test_the_policy_does_not_answer(self, tmp_path: Path) -> None:
        assert self.ask(FakePolicy(tmp_path, {}), 'unconfined') is None


def test_a_directory_without_a_label(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def getxattr(path: str, name: str) -> bytes:
        raise OSError(61, 'No data available')
    monkeypatch.setattr(os, 'getxattr', getxattr)
    assert selinux.denial(str(tmp_path), FakePolicy(tmp_path, {})) is None


def test_a_process_whose_name_is_no_text(tmp_path: Path) -> None:
    for number, name in (('1', b'gr\xc3\n'), ('2', b'virtlogd\n')):
        (tmp_path / number / 'attr').mkdir(parents=True)
        (tmp_path / number / 'comm').write_bytes(name)
        (tmp_path / number / 'attr/current').write_bytes(
            VIRTLOGD.encode() + b'\0')
    (tmp_path / '2' / 'comm').rename(tmp_path / '2' / 'other')
    assert selinux._context_of_virtlogd(tmp_path) is None
    (tmp_path / '2' / 'other').rename(tmp_path / '2' / 'comm')
    assert selinux._context_of_virtlogd(tmp_path) == VIRTLOGD


def test_the_answer_is_read_where_the_question_was_written(
        tmp_path: Path) -> None:
    """In selinuxfs it is at the beginning, in this file behind it."""
    (tmp_path / 'access').write_bytes(b'?' * 3 + b'ff 0')
    assert selinux.Policy(tmp_path).transact('access', 'abc') == 'ff 0'
    assert (tmp_path / 'access').read_bytes() == b'abcff 0'


class TestModule:
    """The module for administrators."""

    @pytest.mark.skipif(
        None in map(shutil.which, ('checkmodule', 'semodule_package')),
        reason='the tools of SELinux are not here: bindep.txt names them')
    def test_it_compiles(self, tmp_path: Path) -> None:
        """By the commands that the page shows."""
        page = ROOT / 'doc/source/operator/security_modules.rst'
        commands = re.findall(r'^   # ((?:checkmodule|semodule_package) .*)$',
                              page.read_text(), re.MULTILINE)
        (tmp_path / 'etc').symlink_to(ROOT / 'etc')
        for command in commands:
            subprocess.run(command.split(), check=True, cwd=tmp_path,
                           stdout=subprocess.DEVNULL)
        assert (tmp_path / 'virtlogd_nova.pp').stat().st_size

    def test_it_allows_what_is_asked_for(self) -> None:
        allowed = dict(re.findall(
            r'allow virtlogd_t nova_var_lib_t:(\w+) \{ (.*) \};',
            MODULE.read_text()))
        assert {kind: tuple(names.split())
                for kind, names in allowed.items()} == NEEDED
