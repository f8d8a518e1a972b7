# SPDX-License-Identifier: Apache-2.0
"""Group ``[virtlogd]`` consists of these options.

``[serial_console]`` and ``[libvirt]`` are nova's and are reused as they are.
"""

import importlib.util
import math
import os
from collections.abc import Sequence

from oslo_config import cfg, types

GROUP = cfg.OptGroup(
    'virtlogd',
    title='Guest consoles through virtlogd',
    help='Options of the virtlogd_driver compute driver.')


#: Seconds. Python waits for no time that the system cannot count; and what is
#: longer than this means never.
_YEAR = 365 * 24 * 3600


class _Integer(types.Integer):
    """Names the value as well; oslo.config says only what is allowed."""

    def __call__(self, value: object) -> int | float | None:
        try:
            return super().__call__(value)
        except ValueError as e:
            raise ValueError(f'{value!r}: {e}') from e


class _Float(types.Float):
    """Names the value as well, and takes only what is finite."""

    def __call__(self, value: object) -> float | None:
        try:
            number = super().__call__(value)
        except ValueError as e:
            raise ValueError(f'{value!r}: {e}') from e
        if number is not None and not math.isfinite(number):
            raise ValueError(f'{value!r} is no number to count with')
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
    cfg.Opt(
        'max_history_bytes',
        type=_Integer(min=0),
        default=8 * 1024 * 1024,
        help="""
The most bytes of older output that follow a guest's serial port to where it
goes on after a migration or a resize to another host.

They are held in the memory of nova-compute while they are copied. What stays
on one file system is not copied: of files that are older than the guest's
present log, those stay that have a byte within this bound.

Possible values:

* Any integer from 0. The default is what virtlogd's own defaults keep of one
  log; (``max_backups`` + 1) x ``max_size`` of ``virtlogd.conf`` keeps all.
* 0: nothing follows.

Related options:

* ``[libvirt] remote_filesystem_transport``: how it is copied to another host.
* ``history_timeout``
"""),
    cfg.Opt(
        'history_timeout',
        type=_Integer(min=1, max=_YEAR),
        default=60,
        help="""
Seconds that one copy of a guest's older output to another host may take.

A copy that takes longer is ended, with a warning, and tried again later. No
live migration waits for it: the guest runs on its destination by then. A cold
migration and a resize to another host wait for one try, before the guest is
started. It is also how long a move or a rebuild waits at most for output that
was promised to the guest and has not come yet.

Possible values:

* Any integer from 1 to 31536000, a year.
"""),
    cfg.Opt(
        'keep_deleted',
        type=_Integer(min=0),
        default=0,
        help="""
Seconds that the console log of a deleted server is kept on its host; 0 is not
at all.

So is the log of a server whose boot failed on this host, wherever nova boots
it next. They are renamed to ``deleted_console_logs`` in ``instances_path``,
which nova-compute's user and root alone may read; ``virtlogd-console list
--deleted`` lists them. Whoever promises that what is deleted is deleted leaves
this at 0.

Possible values:

* 0: nothing is kept. What was is removed when nova-compute starts.
* Any number of seconds.

Related options:

* ``keep_deleted_bytes``
* ``health_interval``: each health pass removes what was kept for so long.
"""),
    cfg.Opt(
        'keep_deleted_bytes',
        type=_Integer(min=0),
        default=1024 * 1024 * 1024,
        help="""
The most bytes of logs of deleted servers that this host keeps.

The oldest go first, before their time; a log that is larger by itself is not
kept. Each counts 12 KiB more than it has, for its directory.

Possible values:

* Any integer from 0.

Related options:

* ``keep_deleted``
"""),
    cfg.BoolOpt(
        'upgrade_on_migration',
        default=False,
        help="""
Give a guest its log, and its TCP port, when it is migrated live.

A guest that was booted without them, by a host that could not have both, keeps
its serial ports as they are until it is rebuilt or hard rebooted. With this
option it gets what it would be booted with on its destination, without a
restart.

Possible values:

* True or False. Set it on the host that the guest leaves.

Related options:

* ``[serial_console] enabled`` on the destination.
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
    cfg.StrOpt(
        'virtlogd_conf',
        default='/etc/libvirt/virtlogd.conf',
        help="""
The configuration file of virtlogd.

It is read for ``max_size`` and ``max_backups``, which bound the size of a
log. A file that is missing counts as virtlogd's defaults.

Possible values:

* An absolute path.
"""),
    cfg.StrOpt(
        'virtlogd_socket',
        default='/run/libvirt/virtlogd-sock',
        help="""
The socket that virtlogd listens on.

libvirt's status files of running guests are expected in the directory
``qemu`` beside it, where libvirt keeps them. The privileged helpers ask this
one alone: set it in a file that their ``helper_command`` is given as well.

Possible values:

* An absolute path of at most 107 bytes.
"""),
    cfg.Opt(
        'health_interval',
        type=_Integer(min=0, max=_YEAR),
        default=60,
        help="""
Seconds from one health pass to the next; 0 is never.

A pass asks virtlogd, through a privileged helper, which logs it writes. A log
that died is said once in nova-compute's log, as an error, and once when it is
back, as information. A pass takes some milliseconds for a hundred guests.

Possible values:

* 0, or any integer up to 31536000, a year.

Related options:

* ``health_timeout``
* ``reattach``, ``viewer_timeout``, ``metrics_file`` and ``keep_deleted``: what
  else a pass does.
* ``[virtlogd_privileged_daemon]``: how the privileged helper is started.
"""),
    cfg.Opt(
        'health_timeout',
        type=_Float(min=0.1, max=600),
        default=5.0,
        help="""
Seconds that virtlogd has to answer, in a health pass and before a guest
starts. One that does not answer in time counts as hung.

Possible values:

* Any number from 0.1 to 600. A virtlogd that is well answers for 500 guests
  within a tenth of a second.
"""),
    cfg.BoolOpt(
        'reattach',
        default=False,
        help="""
Whether a health pass brings a dead log back, without restarting its guest.

It opens the log with virtlogd's private protocol and hands it to QEMU through
libvirt's monitor passthrough. libvirt marks the guest as tainted
(custom-monitor), which its vendor may not support, and who is connected to
the serial console is disconnected. What the guest wrote while the log was
dead is lost either way.

Where this is false, and where it fails, a managed save and start or a live
migration of the guest brings its log back.

Possible values:

* true, false

Related options:

* ``health_interval``: no health pass, no healing.
"""),
    cfg.IntOpt(
        'viewer_timeout',
        default=0,
        min=0,
        help="""
Seconds after which a viewer that stops a guest's output is disconnected; 0 is
never.

A viewer that is connected to the serial console and does not read stops the
output of the guest, and its log, once the buffer of the connection is full. A
health pass says so; with this option it also ends the connection. One that
reads, however slowly, is left alone.

A viewer of the relay stops nobody. If it takes nothing for so long, it is
disconnected as well, to the second.

Possible values:

* 0, or any integer from 10. It is looked at every ``health_interval`` seconds.

Related options:

* ``health_interval``
* ``[virtlogd_privileged_viewer]``: the privileged helper that does it, with
  CAP_NET_ADMIN. It is not started where this is 0.
"""),
    cfg.StrOpt(
        'metrics_file',
        help="""
File that each health pass writes its metrics to, for Prometheus.

It is for node_exporter's textfile collector, which reads what ends in
``.prom``. It is replaced as a whole, so its directory has to be writable for
nova-compute.

Possible values:

* An absolute path. Unset: no metrics.

Related options:

* ``health_interval``
"""),
    cfg.BoolOpt(
        'relay',
        default=False,
        help="""
Whether guests get serial consoles that many may look at.

With true the serial ports of guests listen on ``relay_guest_address``, and
virtlogd-console-relay, a service that has to run on this host, listens on
``[serial_console] proxyclient_address`` at the same TCP ports. A guest gets
this, or loses it, with its next start or live migration to this host; the
service serves all that have it, whatever this option says.

Possible values:

* true, false

Related options:

* ``[serial_console] proxyclient_address``: one address of this host, not all
  of them.
* ``relay_allowed``: has to be set if the address is not a loopback address.
"""),
    cfg.StrOpt(
        'relay_guest_address',
        default='127.20.0.1',
        help="""
Where guests' serial ports listen if they are relayed.

Possible values:

* A numeric address below 127.0.0.0/8, other than ``[serial_console]
  proxyclient_address``. A guest that was started with another one is not
  relayed until it is started again.

Related options:

* ``relay``
"""),
    cfg.ListOpt(
        'relay_allowed',
        help="""
Who may look at consoles through the relay: the hosts of nova-serialproxy.

This host itself always may. Everybody else is disconnected at once, and
counted.

Possible values:

* A list of addresses and networks, such as ``192.0.2.10, 2001:db8::/64``,
  separated by commas. Empty: this host alone. Unset: this host alone, and the
  relay does not start if it listens on an address that others reach.

Related options:

* ``relay``
"""),
    cfg.StrOpt(
        'relay_writers',
        default='all',
        choices=[
            ('all', 'each viewer may type'),
            ('first', 'the viewer that has been there longest may type, the '
                      'others only watch until it has left, or they take '
                      'its turn with "virtlogd-console attach '
                      '--take-over"'),
        ],
        help="""
Who of several viewers of a serial port may type.

Related options:

* ``relay``
"""),
    cfg.IntOpt(
        'relay_buffer_bytes',
        default=1024 * 1024,
        min=512 * 1024,
        max=64 * 1024 * 1024,
        help="""
The most bytes that wait in the relay for one viewer.

One that falls further behind loses the oldest whole lines, and is told so.

Possible values:

* Any integer from 524288 to 67108864.

Related options:

* ``viewer_timeout``: when a viewer that takes nothing is disconnected.
"""),
    cfg.IntOpt(
        'relay_context_bytes',
        default=16 * 1024,
        min=0,
        max=256 * 1024,
        help="""
The most bytes that a viewer is shown of what was written before it came.

They are whole lines, from the console log and from what the relay has seen.

Possible values:

* Any integer from 0 to 262144. The relay keeps twice as many for each serial
  port.
"""),
    cfg.IntOpt(
        'relay_port_viewers',
        default=16,
        min=1,
        help="""
The most viewers of one serial port. Another one is told so, and refused.

Possible values:

* Any integer from 1.
"""),
    cfg.IntOpt(
        'relay_host_viewers',
        default=512,
        min=1,
        help="""
The most viewers of all serial ports of this host.

Possible values:

* Any integer from 1. Each may take ``relay_buffer_bytes`` of memory.
"""),
    cfg.StrOpt(
        'relay_socket',
        default='/run/virtlogd-console-relay/socket',
        help="""
Where the relay is asked who may type: by ``virtlogd-console attach``, with
``--take-over`` or ``--watch``.

Possible values:

* An absolute path, of a Unix socket that the relay makes, for its own user and
  root alone. Its directory has to be writable for the relay: the unit of
  systemd makes the default's. The relay heeds it when it is started.

Related options:

* ``relay_writers``
"""),
    cfg.StrOpt(
        'relay_metrics_file',
        help="""
File that the relay writes its metrics to every 15 seconds, for Prometheus.

Possible values:

* An absolute path that ends in ``.prom``; its directory has to be writable
  for the relay. Unset: no metrics.

Related options:

* ``metrics_file``: another file, of nova-compute.
"""),
]


def nova_paths() -> list[cfg.Opt]:
    """Give nova's options of paths, as nova defines them.

    For a process that does not import nova: the values of other options refer
    to them.
    """
    nova = importlib.util.find_spec('nova')
    return [
        cfg.StrOpt('pybasedir', default=(
            '/var/lib/nova' if nova is None or nova.origin is None
            else os.path.dirname(os.path.dirname(nova.origin)))),
        cfg.StrOpt('state_path', default='$pybasedir'),
        cfg.StrOpt('instances_path', default='$state_path/instances'),
    ]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register group ``[virtlogd]`` with a configuration, such as nova's."""
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> Sequence[tuple[cfg.OptGroup, Sequence[cfg.Opt]]]:
    """List the options for oslo-config-generator (its entry point)."""
    return [(GROUP, OPTS)]
