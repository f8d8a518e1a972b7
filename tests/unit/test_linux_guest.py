# SPDX-License-Identifier: Apache-2.0
"""The kernel of the lab's Linux guest comes from apt-get or from /boot."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.lab import linux_guest

pytestmark = pytest.mark.skipif(
    shutil.which('dpkg-deb') is None, reason='dpkg-deb is not here')


@pytest.fixture(autouse=True)
def no_kernel_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has no kernel of its own."""
    newest = linux_guest._newest

    def in_a_package(root: Path) -> Path | None:
        return None if root == Path('/') else newest(root)
    monkeypatch.setattr(linux_guest, '_newest', in_a_package)


def archive(directory: Path, monkeypatch: pytest.MonkeyPatch,
            depends: Mapping[str, Sequence[str]],
            files: Mapping[str, Sequence[str]]) -> None:
    """An apt that knows these packages, and can download some.

    :param depends: what each package depends on
    :param files: the files of those that can be downloaded
    """
    for package, names in files.items():
        tree = directory / 'tree' / package
        (tree / 'DEBIAN').mkdir(parents=True)
        (tree / 'DEBIAN/control').write_text(
            f'Package: {package}\nVersion: 1\nArchitecture: all\n'
            'Maintainer: nobody <nobody@localhost>\nDescription: none\n')
        for name in names:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(package)
        subprocess.run(['dpkg-deb', '--build', tree, directory],
                       check=True, stdout=subprocess.DEVNULL)
    for package, needed in depends.items():
        (directory / f'{package}.depends').write_text(
            package + '\n' + ''.join(f'  Depends: {n}\n' for n in needed))
    commands = directory / 'bin'
    commands.mkdir()
    for name, script in (
            ('apt-cache', f'cat {directory}/$2.depends'),
            ('apt-get', f'cp {directory}/$2_1_all.deb .')):
        (commands / name).write_text(f'#!/bin/sh\n{script}\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv('PATH', str(commands), prepend=':')


def test_the_image_package_has_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path, monkeypatch,
            {'linux-image-cloud-amd64': ['linux-image-6.1.0-50-cloud-amd64']},
            {'linux-image-6.1.0-50-cloud-amd64':
             ['boot/vmlinuz-6.1.0-50-cloud-amd64']})
    assert linux_guest._kernel(tmp_path).name == (
        'vmlinuz-6.1.0-50-cloud-amd64')


@pytest.mark.parametrize('name', [
    'boot/vmlinuz-7.1-cloud-amd64',
    'usr/lib/modules/7.1-cloud-amd64/vmlinuz'])
def test_what_the_image_package_depends_on_has_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As in Debian unstable."""
    archive(tmp_path, monkeypatch, {
        'linux-image-cloud-amd64': ['linux-image-7.1-cloud-amd64', 'kmod'],
        'linux-image-7.1-cloud-amd64': [
            'linux-base', 'linux-binary-7.1-cloud-amd64',
            'linux-modules-7.1-cloud-amd64'],
    }, {'linux-image-7.1-cloud-amd64': ['usr/share/doc/linux/copyright'],
        'linux-binary-7.1-cloud-amd64': [name]})
    assert linux_guest._kernel(tmp_path).read_text() == (
        'linux-binary-7.1-cloud-amd64')


@pytest.mark.parametrize(('depends', 'files', 'reason'), [
    ({}, {}, 'apt knows none of linux-image-cloud-amd64, .*apt-get update'),
    ({'linux-image-amd64': ['linux-image-7.1-amd64']},
     {'linux-image-7.1-amd64': ['usr/share/doc/linux/copyright']},
     'linux-image-7.1-amd64 has no kernel in it'),
    ({'linux-image-amd64': ['linux-image-7.1-amd64']}, {},
     'linux-image-7.1-amd64 cannot be downloaded: .*No such file'),
])
def test_none_is_found(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        depends: dict[str, list[str]], files: dict[str, list[str]],
        reason: str) -> None:
    """What is said is what was found."""
    archive(tmp_path, monkeypatch, depends, files)
    with pytest.raises(linux_guest.BuildError, match=reason):
        linux_guest._kernel(tmp_path)
