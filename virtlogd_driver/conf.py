# SPDX-License-Identifier: Apache-2.0
"""The options of group ``[virtlogd]``.

``[serial_console]`` and ``[libvirt]`` are nova's and are reused as they are.
"""

from collections.abc import Sequence

from oslo_config import cfg, types

GROUP = cfg.OptGroup(
    'virtlogd',
    title='Guest consoles through virtlogd',
    help='Options of the virtlogd_driver compute driver.')



class _Integer(types.Integer):  # type: ignore[misc]
    """Names the value as well; oslo.config says only what is allowed."""

    def __call__(self, value: object) -> int | None:
        try:
            number: int | None = super().__call__(value)
        except ValueError as e:
            raise ValueError(f'{value!r}: {e}') from e
        return number


OPTS: list[cfg.Opt] = [
    cfg.Opt(
        'max_console_bytes',
        type=_Integer(min=1),
        default=102400,
        help="""
The most bytes of a console log that one read returns.

The answer of ``os-getConsoleOutput`` is never longer than this. It is held in
the memory of nova-compute while it is sent.

Possible values:

* Any integer from 1. The default is what nova's own driver is fixed at.

Related options:

* How much log there is to read is virtlogd's: ``max_size`` and
  ``max_backups`` in ``virtlogd.conf``.
"""),
    cfg.StrOpt(
        'fallback_device',
        default='file',
        choices=[
            ('file', 'a file-backed serial port: the console log works, the '
                     'interactive console does not'),
            ('tcp', 'TCP serial ports: the interactive console works, there '
                    'is no console log'),
        ],
        help="""
What a guest gets where libvirt or QEMU cannot have both consoles at once.

That is where libvirt is older than 1.3.3 or QEMU older than 2.7.0, or where
``stdio_handler`` in ``qemu.conf`` is not "logd".

Related options:

* ``[serial_console] enabled``: where it is false a guest without virtlogd
  always gets the file.
"""),
    cfg.StrOpt(
        'qemu_conf',
        default='/etc/libvirt/qemu.conf',
        help="""
The configuration file of libvirt's QEMU driver.

It is read for ``stdio_handler``, which libvirt does not report. A file that
is missing counts as libvirt's own default, "logd"; one that may not be read
counts as unknown, and unknown is not taken for "file".

Possible values:

* An absolute path.
"""),
    cfg.ListOpt(
        'log_directories',
        default=['/var/log/libvirt/qemu'],
        help="""
Directories besides ``instances_path`` whose logs may be read with privilege.

The daemon that reads root's files for nova-compute gives out no file that is
not below one of these, or that is reached through a link below one of them.

Possible values:

* A list of absolute paths of directories, separated by commas. Empty: only
  the console logs below ``instances_path``.

Related options:

* ``[DEFAULT] instances_path``
* ``[virtlogd_privileged]``: how the daemon is started.
"""),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register group ``[virtlogd]`` with a configuration, such as nova's."""
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> Sequence[tuple[cfg.OptGroup, Sequence[cfg.Opt]]]:
    """Entry point ``oslo.config.opts``, for oslo-config-generator."""
    return [(GROUP, OPTS)]
