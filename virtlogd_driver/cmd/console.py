# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console`` shows and opens the consoles of this host's guests.

It works on any libvirt host. Where there is a nova.conf, its libvirt
connection and group ``[virtlogd]`` are heeded.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from oslo_config import cfg

from virtlogd_driver import exception
from virtlogd_driver.cmd import (
    attach,
    check,
    configuration,
    export,
    follow,
    history,
    interactive,
    listing,
    reattach,
    show,
    standard_streams,
    stream,
    viewers,
    when,
)
from virtlogd_driver.cmd.host import Host

#: As shells say that a program was ended by these signals.
_INTERRUPTED, _BROKEN_PIPE = 130, 141

_DESCRIPTION = """\
Consoles of this host's guests: the log of what they write on their serial
ports, over rotated files and moves between hosts, and the interactive
console.

A GUEST is named by its libvirt name or its UUID (nova's UUID of the
instance), or the beginning of either. Run it as root; what others may do
depends on [virtlogd_privileged] and its filters.
"""
_EPILOG = """\
On a terminal control sequences of a guest other than colours are shown, not
obeyed; --raw passes them on. A pipe or a file gets what the guest wrote, byte
by byte.
"""

_Run = Callable[[Host, argparse.Namespace], int]


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f'{text} is less than 0')
    return number


def _bytes(text: str) -> int:
    """Give a number of bytes; K, M and G stand for powers of 1024."""
    factor = {'K': 10, 'M': 20, 'G': 30}.get(text[-1:].upper(), 0)
    return _count(text[:-1] if factor else text) << factor


def _escape(text: str) -> bytes:
    try:
        return interactive.parse_escape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class _Parsers:
    """Adds the commands to a parser, each with what it needs."""

    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers

    def add(self, name: str, run: _Run, summary: str,
            details: str = '') -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = self._subparsers.add_parser(
            name, help=summary, description=f'{summary}. {details}'.strip(),
            formatter_class=argparse.HelpFormatter)
        parser.set_defaults(run=run)
        return parser


def _guest(parser: argparse.ArgumentParser, several: bool = False) -> None:
    parser.add_argument(
        'guest', metavar='GUEST', nargs='+' if several else None,
        help='name or UUID, or the beginning of either')


def _port(parser: argparse.ArgumentParser, default: int | None = 0) -> None:
    parser.add_argument(
        '--port', type=_count, default=default, metavar='N',
        help='number of the serial port '
             + ('(0)' if default == 0 else '(all)'))


def _raw(parser: argparse.ArgumentParser, plain: bool = True) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        '--raw', action='store_true',
        help='pass control sequences on to the terminal')
    if plain:
        _plain(group)


def _plain(parser: Any) -> None:
    parser.add_argument(
        '--plain', action='store_true',
        help='leave control sequences out, and show a line that was written '
             'over as it was in the end')


def _begin(group: Any) -> None:
    group.add_argument('--boot', type=int, metavar='N',
                       help='of what came after a start of the guest: 1 is '
                            'the first, 0 the last, -1 the one before it')
    group.add_argument('--since', type=when.parse_time, metavar='TIME',
                       help='of what came since a time: RFC 3339, 12:00, or '
                            '5m, 2h, 1d, for how long ago')


def _deleted(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--deleted', action='store_true',
        help='of a deleted guest (found by itself where none is here)')


def _lines(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        '--lines', '-n', type=_count, default=default, metavar='N',
        help=f'begin with the last N lines ({default})')


def _add_commands(subparsers: Any) -> None:
    # Instead of all of them, which is too much for a line.
    subparsers.metavar = 'COMMAND'
    add = _Parsers(subparsers).add

    parser = add('list', listing.run, 'list guests and their serial ports',
                 'LOG tells whether what a guest writes is logged.')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--json', action='store_true',
                      help='print JSON, for programs')
    form.add_argument('--names', action='store_true',
                      help='print names and UUIDs alone, one a line')
    parser.add_argument('--deleted', action='store_true',
                        help='list kept logs of deleted guests')

    parser = add('show', show.run, 'show what a guest wrote',
                 'All of it, through PAGER on a terminal.')
    _guest(parser)
    _port(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument('--all', action='store_true',
                      help='all that is there (the default)')
    part.add_argument('--bytes', '-c', type=_bytes, metavar='N',
                      help='the last N bytes; N may end in K, M or G')
    part.add_argument('--lines', '-n', type=_count, metavar='N',
                      help='the last N lines')
    part = parser.add_mutually_exclusive_group()
    part.add_argument('--since-boot', action='store_true',
                      help='of what came since the last start of the guest')
    _begin(part)
    parser.add_argument('--state', metavar='FILE',
                        help='state file of "stream", for --since')
    _deleted(parser)
    _raw(parser)
    parser.add_argument('--no-pager', action='store_true',
                        help='write to the terminal itself')

    parser = add('follow', follow.run, 'show what guests write, as they do',
                 'Goes on across rotation, stops and starts, and ends when '
                 'the guests have left this host.')
    _guest(parser, several=True)
    _port(parser)
    _lines(parser, 10)
    parser.add_argument('--timestamps', '-t', action='store_true',
                        help='begin each line with when it was received')
    _raw(parser)

    parser = add('stream', stream.run,
                 'write what all guests write, line by line, for a log system',
                 'One JSON object a line, on standard output. Those that '
                 'come to this host are included.')
    parser.add_argument('guest', metavar='GUEST', nargs='*',
                        help='name or UUID, or the beginning of either (all)')
    parser.add_argument('--state', metavar='FILE',
                        help='keep there how far it has come, and go on there')
    parser.add_argument('--format', choices=('json', 'text'), default='json',
                        help='JSON, or text for people')
    begin = parser.add_mutually_exclusive_group()
    _begin(begin)
    _plain(parser)
    parser.add_argument('--no-colour', action='store_true',
                        help='show names and text without colours')

    parser = add('export', export.run, 'copy all logs of a guest',
                 'With a manifest of sizes, hashes and generations.')
    _guest(parser)
    _deleted(parser)
    parser.add_argument('target', metavar='TARGET',
                        help='a new directory, a file NAME.tar.gz, or - for '
                             'such an archive on standard output')

    parser = add('attach', attach.run, 'be at the interactive console',
                 'The guest sees each key but the escape key. What comes from '
                 'a pipe is sent as it is, and ends it once the guest is '
                 'quiet.')
    _guest(parser)
    _port(parser)
    _lines(parser, 20)
    parser.add_argument('--escape', type=_escape, default=b'\x1d',
                        metavar='KEY', help='the key that leaves (^])')
    turn = parser.add_mutually_exclusive_group()
    turn.add_argument('--watch', action='store_true',
                      help='send nothing of what is typed')
    turn.add_argument('--take-over', action='store_true',
                      help='type, in place of who may now ([virtlogd] '
                           'relay_writers = first)')
    _raw(parser, plain=False)

    parser = add('viewers', viewers.run, 'list who is at the consoles',
                 'Of one guest, by address and port. A viewer that does not '
                 'read stops the guest, unless the relay is between them.')
    _guest(parser)
    parser.add_argument('--disconnect', metavar='ADDRESS',
                        help='disconnect this viewer, named by its address, '
                             'or by address:port (root)')

    parser = add('reattach', reattach.run, 'bring a dead log back',
                 'Without restarting the guest. Marks it as tainted for '
                 'libvirt, and disconnects who is at its console.')
    _guest(parser)
    _port(parser, None)

    parser = add('history', history.run,
                 'list output that has not followed its guest yet',
                 'It waits on the host that the guest has left.')
    parser.add_argument('guest', metavar='GUEST', nargs='?',
                        help='UUID, or the beginning of it (all)')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--json', action='store_true',
                      help='print JSON, for programs')
    form.add_argument('--retry', action='store_true',
                      help='let its host have it now')

    parser = add('check', check.run, 'check consoles of this host',
                 'Exit status 0, 1 (a warning) or 2 (a failure).')
    parser.add_argument('--json', action='store_true',
                        help='print JSON, for programs')


def _options(arguments: Sequence[str]) -> cfg.ConfigOpts:
    """Read nova's configuration, if there is one, and the command line.

    The privileged helpers read the same files.
    """
    config = cfg.CONF
    config.register_cli_opts([
        cfg.StrOpt('connect', short='c', metavar='URI',
                   help='libvirt connection; the default is $LIBVIRT_DEFAULT_'
                        'URI, nova\'s, or qemu:///system'),
        cfg.SubCommandOpt('command', title='commands',
                          handler=_add_commands),
    ])
    configuration.read(
        config, arguments, prog='virtlogd-console',
        description=_DESCRIPTION, epilog=_EPILOG,
        version=metadata.version('virtlogd-driver'))
    return config


def _host(config: cfg.ConfigOpts) -> Host:
    return Host(
        uri=(config.connect or os.environ.get('LIBVIRT_DEFAULT_URI')
             or config.libvirt.connection_uri or 'qemu:///system'),
        virtlogd_socket=config.virtlogd.virtlogd_socket,
        timeout=config.virtlogd.health_timeout,
        root_helper=configuration.root_helper(config),
        relay=(config.virtlogd.relay_guest_address,
               config.serial_console.proxyclient_address),
        relay_socket=config.virtlogd.relay_socket,
        virtlogd_conf=config.virtlogd.virtlogd_conf,
        name=config.host)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``virtlogd-console``: its entry point."""
    standard_streams.prepare()
    # What the privileged helpers say is in the errors.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        config = _options(sys.argv[1:] if arguments is None else arguments)
        command = config.command
        status: int = command.run(_host(config), command)
        sys.stdout.flush()
    except (exception.VirtlogdDriverError, cfg.Error) as error:
        print(f'virtlogd-console: {error}', file=sys.stderr)
        return 1
    except BrokenPipeError:
        standard_streams.abandon_output()
        return _BROKEN_PIPE
    except OSError as error:
        standard_streams.abandon_output()
        print(f'virtlogd-console: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status


if __name__ == '__main__':
    sys.exit(main())
