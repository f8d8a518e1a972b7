# SPDX-License-Identifier: Apache-2.0
"""nova's user can use libvirt's files, though they are root's alone."""

import os
import pathlib
from collections.abc import Iterator

import pytest
from oslo_config import cfg
from oslo_privsep import daemon

from virtlogd_driver import conf, exception
from virtlogd_driver.virtlogd import conf_files, privileged, settings
from virtlogd_driver.virtlogd.settings import StdioHandler, VirtlogdSettings


@pytest.fixture
def files(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory with the two files that are configured."""
    conf.register_opts(cfg.CONF)
    for option in ('qemu_conf', 'virtlogd_conf'):
        path = tmp_path / option.replace('_', '.')
        path.touch()
        cfg.CONF.set_override(option, str(path), group='virtlogd')
    yield tmp_path
    for option in ('qemu_conf', 'virtlogd_conf'):
        cfg.CONF.clear_override(option, group='virtlogd')


class Helper:
    """Stands for the process of root that may read what this one may not.

    What it answers goes as privsep carries it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may = False
        self.error: Exception | None = None
        self.calls = 0
        opened, status = open, os.stat

        def refusing(function):  # type: ignore[no-untyped-def]
            def call(path, *args, **kwargs):  # type: ignore[no-untyped-def]
                if str(path).endswith('.conf') and not self.may:
                    raise PermissionError(13, 'Permission denied', path)
                return function(path, *args, **kwargs)
            return call

        monkeypatch.setattr(settings, 'open', refusing(opened), raising=False)
        monkeypatch.setattr(settings.os, 'stat', refusing(status))
        monkeypatch.setattr(privileged.virtlogd_context, 'client_mode', True)
        monkeypatch.setattr(
            privileged.virtlogd_context, '_connected', lambda: self)

    def remote_call(self, name: str, args: tuple[str, ...],
                    kwargs: object, timeout: object) -> object:
        if self.error is not None:
            raise self.error
        self.calls += 1
        function = getattr(privileged, name.rpartition('.')[2]).args[0]
        self.may = True
        try:
            return function(*args)
        except Exception as e:
            raise type(e)(*e.args) from None
        finally:
            self.may = False


@pytest.fixture
def helper(files: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Helper:
    return Helper(monkeypatch)


@pytest.mark.parametrize(('text', 'handler'), [
    ('', StdioHandler.LOGD),
    ('stdio_handler = "file"\n', StdioHandler.FILE),
    ('stdio_handler = "syslog"\n', StdioHandler.UNKNOWN),
    ('stdio_handler = file\n', StdioHandler.UNKNOWN),
])
def test_the_handler_is_known_of_a_file_of_root(
        files: pathlib.Path, helper: Helper, text: str,
        handler: StdioHandler) -> None:
    (files / 'qemu.conf').write_text(text)
    assert conf_files.stdio_handler(str(files / 'qemu.conf')) is handler
    assert helper.calls == 1
    helper.may = True
    assert conf_files.stdio_handler(str(files / 'qemu.conf')) is handler
    # This process may read it now.
    assert helper.calls == 1


@pytest.mark.parametrize('error', [
    daemon.FailedToDropPrivileges('no sudo'), FileNotFoundError('sudo')])
def test_nobody_can_read_it(files: pathlib.Path, helper: Helper,
                            error: Exception) -> None:
    helper.error = error
    qemu_conf = str(files / 'qemu.conf')
    assert conf_files.stdio_handler(qemu_conf) is StdioHandler.UNKNOWN
    for function in (conf_files.check_qemu_conf,
                     conf_files.virtlogd_settings):
        with pytest.raises(type(error)):
            function(qemu_conf)


def test_no_other_file_is_read_with_privilege(
        files: pathlib.Path, helper: Helper) -> None:
    other = str(files / 'secret.conf')
    assert conf_files.stdio_handler(other) is StdioHandler.UNKNOWN
    for function in (conf_files.check_qemu_conf,
                     conf_files.virtlogd_settings):
        with pytest.raises(exception.VirtlogdError, match=r'qemu\.conf|virt'):
            function(other)


def test_what_is_wrong_comes_without_the_file(
        files: pathlib.Path, helper: Helper) -> None:
    path = files / 'qemu.conf'
    path.write_text('vnc_password = 12345\nspice_password = "XYZ12345"\n')
    with pytest.raises(exception.InvalidConfFile) as raised:
        conf_files.check_qemu_conf(str(path))
    assert f'{path}: vnc_password must be a string' in str(raised.value)
    assert '12345' not in str(raised.value)


def test_virtlogd_conf(files: pathlib.Path, helper: Helper) -> None:
    path = files / 'virtlogd.conf'
    assert conf_files.virtlogd_settings(str(path)) == VirtlogdSettings()
    path.write_text('max_size = 4096\nmax_backups = 7\n')
    assert conf_files.virtlogd_settings(
        str(path)) == VirtlogdSettings(4096, 7)
    path.write_text('max_clients = "1024"\n')
    with pytest.raises(exception.InvalidConfFile,
                       match=rf'{path}: max_clients must be'):
        conf_files.virtlogd_settings(str(path))


def _too_many_files(path: str) -> VirtlogdSettings:
    raise OSError(24, 'Too many open files')


def test_how_many_backups(tmp_path: pathlib.Path,
                          monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read when the file has changed, and never a reason to fail."""
    path = tmp_path / 'virtlogd.conf'
    # virtlogd may have been given another file.
    assert conf_files.max_backups(str(path)) is None
    path.write_text('max_size = 4096\n')
    assert conf_files.max_backups(str(path)) == 3
    path.write_text('max_backups = 7\n')
    assert conf_files.max_backups(str(path)) == 7
    with monkeypatch.context() as patch:
        patch.delattr(conf_files, 'virtlogd_settings')
        assert conf_files.max_backups(str(path)) == 7
    path.write_text('max_backups = "many"\n')
    assert conf_files.max_backups(str(path)) is None
    path.write_text('max_backups = 9\n')
    with monkeypatch.context() as patch:
        patch.setattr(settings, 'read_virtlogd_settings', _too_many_files)
        assert conf_files.max_backups(str(path)) is None
    # That it could not be read then says nothing of now.
    assert conf_files.max_backups(str(path)) == 9
    assert conf_files.max_backups('/nowhere/virtlogd.conf') is None


def test_a_helper_that_hangs_is_not_waited_for_each_time(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'virtlogd.conf'
    path.write_text('max_backups = 7\n')
    asked = []

    def hang(*_: object) -> VirtlogdSettings:
        asked.append(1)
        raise TimeoutError
    with monkeypatch.context() as patch:
        patch.setattr(settings, 'read_virtlogd_settings', hang)
        for _ in range(3):
            assert conf_files.max_backups(str(path)) is None
    assert asked == [1]
    monkeypatch.setattr(conf_files, '_hangs', {str(path): 0.0})
    assert conf_files.max_backups(str(path)) == 7


def test_a_file_that_is_not_there_is_not_asked_for(
        files: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(privileged, 'stdio_handler')
    assert conf_files.stdio_handler(
        str(files / 'none')) is StdioHandler.LOGD
