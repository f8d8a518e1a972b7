# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console-relay`` is a service that lets many look at a console.

It reads what nova-compute reads: nova.conf and its group ``[virtlogd]``.
"""

import asyncio
import functools
import logging
import os
import resource
import signal
import sys

from oslo_config import cfg

from virtlogd_driver import exception
from virtlogd_driver.cmd import configuration
from virtlogd_driver.console_log import log
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.console_log.log import LogRead
from virtlogd_driver.node.events import Watch
from virtlogd_driver.relay import settings
from virtlogd_driver.relay.service import ReadTail, Relay, in_thread
from virtlogd_driver.relay.settings import Settings

LOG = logging.getLogger(__name__)

#: Seconds from one look at all guests to the next: events tell the rest.
_INTERVAL = 60.0


def _settings(config: cfg.ConfigOpts) -> Settings:
    """Read the options.

    :raises VirtlogdDriverError: an option cannot be used
    """
    own = config.virtlogd
    address = settings.check_outer(config.serial_console.proxyclient_address)
    return Settings(
        address=address,
        guest_address=settings.check_inner(own.relay_guest_address, address),
        allowed=settings.check_allowed(own.relay_allowed, address),
        writers=own.relay_writers,
        buffer_size=own.relay_buffer_bytes,
        context_size=own.relay_context_bytes,
        viewer_timeout=own.viewer_timeout,
        port_viewers=own.relay_port_viewers,
        host_viewers=own.relay_host_viewers)


def _read_tail(path: str, limit: int) -> LogRead:
    """Read the newest bytes of a log that this user may read.

    :raises LogError: see :func:`log.read_tail`
    """
    directory, name = os.path.split(path)
    with open_directory(directory) as opened:
        return log.read_tail(opened, name, limit)


def _log_reader(config: cfg.ConfigOpts) -> ReadTail:
    """Give what reads logs: with the helper of nova-compute, if it starts.

    It does not under NoNewPrivileges, as the service has it: then viewers see
    what was written since the relay was connected, and of older output what
    this user may read.
    """
    if os.geteuid() == 0 or _has_no_new_privileges():
        return _read_tail
    # It takes 25 MiB.
    from oslo_privsep import priv_context

    from virtlogd_driver.console_log import reader
    priv_context.init(root_helper=configuration.root_helper(config))
    return reader.read_tail


def _has_no_new_privileges() -> bool:
    """Tell whether sudo gives this process none: proc(5)."""
    with open('/proc/self/status') as status:
        return 'NoNewPrivs:\t1\n' in status


def _more_files() -> None:
    """Give as many connections as the service may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _read_again(config: cfg.ConfigOpts) -> Settings:
    """Read the options as they are now.

    :raises cfg.Error, ValueError, VirtlogdDriverError: one cannot be used
    """
    if not config.reload_config_files():
        raise cfg.Error('a file cannot be read')
    return _settings(config)


async def _reload(config: cfg.ConfigOpts, relay: Relay,
                  wanted: asyncio.Event) -> None:
    """Take the options anew whenever that is wanted.

    They are read in a thread: who knows the addresses of names may not answer,
    nor may the disk, and no viewer waits for either.
    """
    while True:
        await wanted.wait()
        wanted.clear()
        try:
            relay.reload(await in_thread(_read_again, config))
        except (cfg.Error, ValueError, RuntimeError,
                exception.VirtlogdDriverError) as error:
            LOG.error('The options are not changed: %s', error)
        except Exception:
            # The next signal is heeded all the same.
            LOG.exception('The options are not changed, for a reason that is '
                          'not foreseen')


async def _serve(config: cfg.ConfigOpts, checked: Settings) -> None:
    relay = Relay(checked, config.virtlogd.relay_metrics_file,
                  config.virtlogd.relay_socket, _log_reader(config))
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    wanted = asyncio.Event()
    reloading = asyncio.create_task(_reload(config, relay, wanted))
    loop.add_signal_handler(signal.SIGHUP, wanted.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    if not config.virtlogd.relay:
        LOG.info('[virtlogd] relay is false: guests that were started while '
                 'it was true are relayed until their next start, no others')
    await relay.run(functools.partial(
        Watch, config.libvirt.connection_uri or 'qemu:///system', _INTERVAL),
        ending)
    reloading.cancel()
    # A thread may wait for libvirt or for a disk: it is not waited for.
    logging.shutdown()
    os._exit(0)


def main() -> int:
    """Run the relay: 0 when it was told to end, 1 if it cannot start."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr,
                        format='%(levelname)s %(message)s')
    config = cfg.CONF
    try:
        configuration.read(
            config, sys.argv[1:], prog='virtlogd-console-relay',
            description='Lets many look at the serial console of a guest, '
                        'none of whom can stop it.')
        checked = _settings(config)
    except (cfg.Error, ValueError, exception.VirtlogdDriverError) as error:
        print(f'virtlogd-console-relay: {error}', file=sys.stderr)
        return 1
    _more_files()
    asyncio.run(_serve(config, checked))
    return 0


if __name__ == '__main__':
    sys.exit(main())
