# SPDX-License-Identifier: Apache-2.0
"""The options of group ``[virtlogd]``.

``[serial_console]`` and ``[libvirt]`` are nova's and are reused as they are.
"""

from collections.abc import Sequence

from oslo_config import cfg

GROUP = cfg.OptGroup(
    'virtlogd',
    title='Guest consoles through virtlogd',
    help='Options of the virtlogd_driver compute driver.')

OPTS: list[cfg.Opt] = [
    cfg.IntOpt(
        'max_console_bytes',
        default=102400,
        min=1,
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
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register group ``[virtlogd]`` with a configuration, such as nova's."""
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> Sequence[tuple[cfg.OptGroup, Sequence[cfg.Opt]]]:
    """Entry point ``oslo.config.opts``, for oslo-config-generator."""
    return [(GROUP, OPTS)]
