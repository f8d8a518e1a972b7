# SPDX-License-Identifier: Apache-2.0
"""The commands read nova's configuration, as nova-compute reads it.

nova itself is not imported: the commands work where it does not, to say why,
and it takes seconds.
"""

import itertools
import shlex
import socket
from collections.abc import Sequence
from typing import Any

from oslo_config import cfg
from oslo_utils import netutils

from virtlogd_driver import conf

#: What may come after the command as well as before it.
_ANYWHERE = ('--config-file', '--config-dir', '--connect')


#: nova's own options that are needed here, as nova defines them; my_ip as the
#: values of others refer to it.
_NOVA: dict[str | None, list[cfg.Opt]] = {
    None: [
        cfg.StrOpt('compute_driver'),
        cfg.HostDomainOpt('host', default=socket.gethostname()),
        cfg.StrOpt('my_ip', default=netutils.get_my_ipv4()),
        *conf.nova_paths(),
        cfg.StrOpt('rootwrap_config', default='/etc/nova/rootwrap.conf'),
    ],
    'libvirt': [
        cfg.StrOpt('connection_uri', default=''),
        cfg.StrOpt('remote_filesystem_transport', default='ssh'),
    ],
    'serial_console': [
        cfg.BoolOpt('enabled', default=False),
        cfg.StrOpt('port_range', default='10000:20000'),
        cfg.StrOpt('proxyclient_address', default='127.0.0.1'),
    ],
    'workarounds': [
        cfg.BoolOpt('disable_rootwrap', default=False),
    ],
}


def read(config: cfg.ConfigOpts, arguments: Sequence[str],
         **about: Any) -> None:
    """Read nova's files, those of nova-compute, and the command line.

    :param config: with the options of the command line; the privileged
        helpers are given the files that it has read
    :param about: further arguments of ConfigOpts, such as the description
    :raises cfg.Error: a file or a value cannot be read
    """
    for group, options in _NOVA.items():
        config.register_opts(options, group=group)
    conf.register_opts(config)
    try:
        config(_options_first(arguments), project='nova',
               default_config_files=cfg.find_config_files(
                   'nova', 'nova-compute'),
               default_config_dirs=cfg.find_config_dirs(
                   'nova', 'nova-compute'),
               **about)
    except UnicodeDecodeError as e:
        before = e.object[:e.start].rpartition(b'\n')[2].decode(
            errors='replace')
        raise cfg.Error(
            f'A configuration file is not UTF-8, and no service of nova reads '
            f'it either: correct what comes after {before!r}.') from e
    # Before anything is done.
    root_helper(config)


def check(config: cfg.ConfigOpts) -> None:
    """Read each option that is needed here, as nova-compute does first.

    :raises cfg.Error: a value is not valid, naming option and file
    """
    for option in _NOVA[None]:
        getattr(config, option.dest)
    for group in ('virtlogd', 'serial_console'):
        for option in config[group]:
            getattr(config[group], option)


def _options_first(arguments: Sequence[str]) -> list[str]:
    """Put options first: oslo.config knows them before a command only."""
    first: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == '--':
            rest += [argument, *left]
        elif argument in _ANYWHERE:
            first += [argument, *itertools.islice(left, 1)]
        elif argument.partition('=')[0] in _ANYWHERE:
            first.append(argument)
        else:
            rest.append(argument)
    return first + rest


def root_helper(config: cfg.ConfigOpts) -> list[str]:
    """Tell what nova-compute starts its helpers with (nova/utils.py).

    Its sudo has no terminal to ask for a password at; nor has this one.

    :raises cfg.Error: rootwrap_config is no part of a command
    """
    if config.workarounds.disable_rootwrap:
        return ['sudo', '-n']
    try:
        words = shlex.split(f'nova-rootwrap {config.rootwrap_config}')
    except ValueError as e:
        raise cfg.Error(
            f'rootwrap_config = {config.rootwrap_config} in nova.conf is not '
            f'valid ({e}): give the path of a file.') from e
    return ['sudo', '-n', *words]
