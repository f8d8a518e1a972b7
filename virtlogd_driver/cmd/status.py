# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-driver-status check`` tells whether this node's consoles work.

Exit status as nova-status has it: 0 all well, 1 a warning, 2 a failure, 255
an error of the command itself.
"""

import contextlib
import functools
import logging
import sys
import time
from typing import Any

from oslo_config import cfg
from oslo_privsep import priv_context
from oslo_upgradecheck import upgradecheck

from virtlogd_driver import exception
from virtlogd_driver.cmd import configuration, history, standard_streams
from virtlogd_driver.history import deleted
from virtlogd_driver.node import checks, hypervisor
from virtlogd_driver.node.survey import Options, survey
from virtlogd_driver.node.watch import Relay
from virtlogd_driver.relay import settings
from virtlogd_driver.virtlogd.disk import DISKS

#: Of the command itself, as nova-status has it.
_ERROR = 255


def _result(commands: 'StatusCommands',
            function: checks.Check) -> upgradecheck.Result:
    return function(commands.survey)


# oslo.upgradecheck calls each function with the commands and the keywords.
_CHECKS = tuple((name, (_result, {'function': function}))
                for name, function in checks.CHECKS)


class StatusCommands(upgradecheck.UpgradeCommands):
    """The checks are given as oslo.upgradecheck wants them."""

    display_title = 'virtlogd-driver: Status of This Compute Node'

    def __init__(self, config: cfg.ConfigOpts) -> None:
        super().__init__()
        self._config = config

    @functools.cached_property
    def survey(self) -> checks.Survey:
        """Tell what is known of the host; looked at once."""
        return survey(options(self._config), self._connect)

    def _connect(self) -> Any:
        return hypervisor.connect(
            self._config.libvirt.connection_uri or 'qemu:///system')

    _upgrade_checks = _CHECKS


def options(config: cfg.ConfigOpts) -> Options:
    own, serial = config.virtlogd, config.serial_console
    return Options(
        config.compute_driver or '', config.instances_path, serial.enabled,
        serial.port_range, serial.proxyclient_address, own.qemu_conf,
        own.virtlogd_conf, own.virtlogd_socket, own.health_interval,
        own.health_timeout, own.metrics_file, tuple(
            f'{one.guest} ({one.reason})' for one in history.late(
                config.instances_path)), _relay(config),
        functools.partial(_kept, config))


def _kept(config: cfg.ConfigOpts) -> checks.KeptLogs | None:
    """Give what is kept of deleted guests; None: nothing is, nor is to be.

    :raises DiskStalled: one is to be kept, and the file system of
        instances_path does not answer
    """
    own, now = config.virtlogd, time.time()
    keeping = deleted.Keeping(config.instances_path, config.host,
                              own.keep_deleted, own.keep_deleted_bytes)
    try:
        stock = DISKS.ask(keeping.directory, deleted.stock, keeping, now)
    except exception.DiskStalled:
        if keeping.seconds:
            raise
        return None
    if not keeping.seconds and not stock.count:
        return None
    return checks.KeptLogs(
        stock.count, stock.size, keeping.limit,
        None if stock.oldest is None else now - stock.oldest, stock.late, 0,
        stock.fault)


def _relay(config: cfg.ConfigOpts) -> Relay | None:
    """Tell where relayed guests and the relay listen; None: not known."""
    # What is wrong with the address is said by a check of its own.
    with contextlib.suppress(exception.VirtlogdDriverError):
        return Relay(
            config.virtlogd.relay_guest_address, settings.check_outer(
                config.serial_console.proxyclient_address))
    return None


def _register(config: cfg.ConfigOpts) -> None:
    def add_parsers(subparsers: Any) -> None:
        parser = subparsers.add_parser(
            'check', help='look at this compute node; exit status 0, 1 '
                          '(warning) or 2 (failure)')
        parser.add_argument(
            '--json', action='store_true',
            help='print the results as JSON; the default is a table')
        parser.set_defaults(action_fn=StatusCommands(config).check)

    config.register_cli_opt(cfg.SubCommandOpt(
        'command', title='commands', handler=add_parsers))


def main() -> int:
    """Run ``virtlogd-driver-status``: its entry point."""
    standard_streams.prepare()
    # What the privileged helpers say is in the results.
    logging.getLogger().addHandler(logging.NullHandler())
    # They read the same configuration.
    config = cfg.CONF
    _register(config)
    try:
        configuration.read(config, sys.argv[1:],
                           prog='virtlogd-driver-status')
        configuration.check(config)
        priv_context.init(root_helper=configuration.root_helper(config))
        upgradecheck.CONF = config
        code = int(upgradecheck.run(config))
        sys.stdout.flush()
    except BrokenPipeError:
        standard_streams.abandon_output()
        return _ERROR
    except (cfg.Error, OSError) as error:
        standard_streams.abandon_output()
        print(f'virtlogd-driver-status: {error}', file=sys.stderr)
        return _ERROR
    return code


if __name__ == '__main__':
    sys.exit(main())
