# SPDX-License-Identifier: Apache-2.0
"""unittest's discovery finds nova's test modules here.

``VIRTLOGD_PEERS`` names them; ``VIRTLOGD_PEERS_DRIVER`` is "ours" or
"upstream": which class they find as ``LibvirtDriver``.
"""

import importlib
import logging
import os
import sys
import threading
import traceback
import unittest
from typing import Any, NoReturn

PACKAGE = 'nova.tests.'

#: Seconds; nova keeps up to 20 of them for the clean-up alone.
_CLEAN_UP = 20


def _prepare() -> None:
    # First, because it decides about eventlet before anything else is loaded.
    importlib.import_module('nova.tests.unit')
    from nova.conf import paths
    # The wheel's api-paste.ini; nova's tests expect a checkout.
    for option in paths.ALL_OPTS:
        if option.name == 'state_path':
            option.default = sys.prefix
    _read_beside_who_waits_to_write()
    _say_what_is_waited_for()
    _wait_for_services_that_end()
    modules = os.environ['VIRTLOGD_PEERS'].split()
    if any(name.endswith('.test_vgpu') for name in modules):
        _boot_one_at_a_time()
    if any(name.startswith('functional.') for name in modules):
        _wait_for_what_follows_a_migration()
    if os.environ['VIRTLOGD_PEERS_DRIVER'] == 'ours':
        _rebind()


def _read_beside_who_waits_to_write() -> None:
    """Let nova's fixture of cells not wait for itself.

    It holds its lock for reading while another service reads for it; fasteners
    has that one wait for any thread that waits to write, which waits for the
    first. On a machine that is busy this is only a matter of time.
    """
    from nova.tests import fixtures
    fixtures.ReaderWriterLock.has_pending_writers = False


def _boot_one_at_a_time() -> None:
    """Let no two servers of nova's tests of virtual GPUs take the same one.

    nova's driver looks for a device that no domain has, and defines the domain
    later: of two servers that are booted at once the second may find that of
    the first. With a pause before ``_get_guest_xml`` it always does.
    """
    base = importlib.import_module(
        f'{PACKAGE}functional.libvirt.test_vgpu').VGPUTestBase
    start = base.start_compute_with_vgpu

    def start_and_lock(self: Any, *args: Any, **names: Any) -> Any:
        compute = start(self, *args, **names)
        lock, spawn = threading.Lock(), compute.driver.spawn

        def locked(*args: Any, **names: Any) -> None:
            with lock:
                spawn(*args, **names)
        compute.driver.spawn = locked
        return compute
    base.start_compute_with_vgpu = start_and_lock


def _wait_for_what_follows_a_migration() -> None:
    """Let nova's tests see a live migration as completed once it is done.

    nova says "completed" and deletes the migration's allocation after it; a
    test that has waited for the word looks at once whether that is gone. With
    a pause before ``_delete_allocation_after_move`` it never is.
    """
    manager = importlib.import_module('nova.compute.manager').ComputeManager
    helpers = importlib.import_module(
        f'{PACKAGE}functional.integrated_helpers').InstanceHelperMixin
    follow, wait = (manager._post_live_migration,
                    helpers._wait_for_migration_status)
    #: UUIDs of the guests whose migration is not done.
    guests: set[str] = set()
    done = threading.Condition()

    def note_and_follow(self: Any, context: Any, instance: Any,
                        *args: Any, **names: Any) -> None:
        with done:
            guests.add(instance.uuid)
        try:
            follow(self, context, instance, *args, **names)
        finally:
            with done:
                guests.discard(instance.uuid)
                done.notify_all()

    def wait_for_all(self: Any, server: Any, statuses: Any) -> Any:
        migration = wait(self, server, statuses)
        if migration['status'] == 'completed':
            with done:
                # At most OS_TEST_TIMEOUT, as all that a test of nova's does.
                done.wait_for(lambda: server['id'] not in guests)
        return migration
    manager._post_live_migration = note_and_follow
    helpers._wait_for_migration_status = wait_for_all


def _say_what_is_waited_for() -> None:
    """Log what each thread does, where nova's tests have waited in vain."""
    from nova import test
    fail = test.TestCase.fail

    def say_and_fail(self: Any, message: Any = None) -> NoReturn:
        for number, frame in sys._current_frames().items():
            logging.getLogger('threads').warning(
                'Thread %d:\n%s', number,
                ''.join(traceback.format_stack(frame, limit=12)))
        fail(self, message)
    test.TestCase.fail = say_and_fail


def _wait_for_services_that_end() -> None:
    """Let a service that nova's tests have ended be done with its clean-up.

    nova 34 leaves that to another thread, for which its fixtures wait 0
    seconds. Where the thread takes longer than the fixture is there, it closes
    the pools of this process for good, and all later tests fail.
    """
    from nova import service
    if hasattr(service.Service, '_get_manager_shutdown_timeout'):
        service.Service._get_manager_shutdown_timeout = (
            lambda self: _CLEAN_UP)


def _rebind() -> None:
    from nova.virt.libvirt import driver as module

    from tests.peers import without_host
    from tests.peers.rebind import rebind
    from virtlogd_driver.compute import driver
    without_host.install()
    rebind(module, module.LibvirtDriver, driver.VirtlogdDriver)


def load_tests(loader: unittest.TestLoader, _tests: unittest.TestSuite,
               _pattern: str | None) -> unittest.TestSuite:
    _prepare()
    return loader.loadTestsFromNames(
        [PACKAGE + name for name in os.environ['VIRTLOGD_PEERS'].split()])
