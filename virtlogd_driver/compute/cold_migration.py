# SPDX-License-Identifier: Apache-2.0
"""Resize, cold migration, revert, rebuild and evacuation: the history of a
guest goes along.

In the order in which nova calls it.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import power_state, task_states
from nova.objects import fields
from nova.virt.libvirt.utils import get_instance_path
from oslo_log import log as logging

from virtlogd_driver.compute.consoles import Consoles
from virtlogd_driver.compute.live_migration import Destination
from virtlogd_driver.compute.nova_edge import nova_errors
from virtlogd_driver.compute.options import Options
from virtlogd_driver.compute.starts import Starts
from virtlogd_driver.history import history, transfer

LOG = logging.getLogger(__name__)


def is_expected(uuid: str) -> bool:
    """Whether nova's database has a guest with which something is going on."""
    try:
        instance = objects.Instance.get_by_uuid(
            nova_context.get_admin_context(), uuid)
    except nova_exception.InstanceNotFound:
        return False
    return instance.task_state is not None


def _aside(directory: str) -> str:
    """Where the logs are while nova deletes the directory for a rebuild."""
    return f'{directory}_console'


class ColdMigration:
    """Guests that are off while they move, or that are built anew."""

    def __init__(self, options: Options, consoles: Consoles, starts: Starts,
                 arrivals: Destination,
                 carrier: Callable[[], history.History]) -> None:
        """
        :param arrivals: what may still come to this host
        :param carrier: gives what carries histories, with today's options
        """
        self._options = options
        self._consoles = consoles
        self._starts = starts
        self._arrivals = arrivals
        self._carrier = carrier

    def adopt(self, in_use: dict[str, list[str]]) -> None:
        """As nova-compute starts: what came while nova's own driver ran here.

        A guest that is evacuated has its directory elsewhere, or a shared one
        that is not for this host to touch.

        :param in_use: names of the logs that each guest's domain has, by UUID
        """
        with history.never_fatal(
                None, 'The old output of guests is not put in place'):
            self._adopt(in_use)
            for path in history.left_behind(self._options.instances_path):
                LOG.warning('nova-compute ended before %s was copied, where '
                            'the output of a guest is that has moved to '
                            'another host. Look at it, then remove it', path)

    def _adopt(self, in_use: dict[str, list[str]]) -> None:
        here: Iterable[str] = objects.InstanceList.get_uuids_by_host(
            nova_context.get_admin_context(),
            self._options.host) if in_use else []
        for uuid in in_use.keys() & set(here):
            directory = os.path.join(self._options.instances_path, uuid)
            names: Collection[str] = in_use[uuid]
            self._carrier().adopt(uuid, directory, _aside(directory), names)
            self._arrivals.receive_unexpected(uuid, None, directory, names)

    def evacuated(self, instance: Any) -> None:
        """A guest is built here, perhaps as its host is lost: where its
        directory is shared that host may come back, and write there."""
        self._carrier().begin_evacuated(instance, get_instance_path(instance))

    def check(self, instance: Any, flavor: Any, dest: str,
              here: str) -> None:
        """Before a guest is shut down: can it have its console afterwards?

        :param flavor: nova's Flavor that it is to have
        :param dest: address of the destination
        :param here: address of this host
        :raises NovaException: what is missing, and the remedy
        """
        with nova_errors():
            self._consoles.plan(flavor, instance.image_meta)
        if dest == here and instance.power_state == power_state.RUNNING:
            self._starts.check(instance)

    def leave(self, instance: Any, dest: str) -> None:
        """The guest is off, and nova has moved its directory out of the way.

        :param dest: address of the destination
        """
        directory = get_instance_path(instance)
        with history.never_fatal(instance):
            moves = transfer.moves(f'{directory}_resize', directory)
            # nova has made the directory anew where the storage is shared.
            self._carrier().send(
                instance, moves, None if os.path.isdir(directory) else dest,
                [os.path.join(directory, os.path.basename(here))
                 for here, _ in moves])

    def arrive(self, instance: Any) -> None:
        """Before the guest is started where it was moved to."""
        self._carrier().receive(instance, get_instance_path(instance))

    def return_(self, instance: Any) -> None:
        """Before the guest is started where it comes back to."""
        directory = get_instance_path(instance)
        before = f'{directory}_resize'
        with history.never_fatal(instance):
            if os.path.isdir(directory) and os.path.isdir(before):
                self._carrier().send(
                    instance, transfer.moves(directory, before), None)
        self._carrier().receive(instance, before)

    @contextlib.contextmanager
    def saved(self, context: Any, instance: Any,
              destroy_disks: bool) -> Iterator[None]:
        """While nova deletes the directory: what is to stay is elsewhere."""
        directory = get_instance_path(instance)
        rebuilt = False
        with history.never_fatal(instance):
            rebuilt = self._save(context, instance, destroy_disks, directory)
        try:
            yield
        finally:
            if rebuilt:
                with history.never_fatal(instance):
                    os.makedirs(directory, exist_ok=True)
                    transfer.receive(_aside(directory), directory)

    def _save(self, context: Any, instance: Any, destroy_disks: bool,
              directory: str) -> bool:
        """Whether something was saved that is to be put back."""
        aside = _aside(directory)
        task = instance.get('task_state', None)
        if (destroy_disks and task == task_states.REBUILDING
                and not self._goes_elsewhere(context, instance)):
            self._arrivals.wait_for_history(instance)
            self._carrier().stage(
                instance, transfer.moves(directory, directory), aside)
            return True
        if destroy_disks:
            self._arrivals.gone(instance.uuid)
            shutil.rmtree(aside, ignore_errors=True)
        # Where the directory that is gone back to is here, return_ sees to
        # it.
        if (task == task_states.RESIZE_REVERTING
                and os.path.isdir(directory)
                and not os.path.isdir(f'{directory}_resize')):
            self._send_back(context, instance, directory)
        return False

    def _goes_elsewhere(self, context: Any, instance: Any) -> bool:
        """Whether it is just evacuated: this host was lost, and is back.

        nova deletes it then (nova/compute/manager.py,
        _destroy_evacuated_instances), in the task state of a rebuild.
        """
        return bool(objects.MigrationList.get_by_filters(
            context.elevated(), {
                'instance_uuid': instance.uuid,
                'source_compute': self._options.host,
                'migration_type': fields.MigrationType.EVACUATION,
                'status': ['accepted', 'pre-migrating']}))

    def _send_back(self, context: Any, instance: Any, directory: str) -> None:
        """To the host that a resized instance goes back to."""
        resize = objects.Migration.get_by_instance_and_status(
            context.elevated(), instance.uuid, 'reverting')
        # In another cell it has kept the directory under its own name; where
        # that is shared it is this one.
        if not resize.cross_cell_move:
            self._carrier().send(
                instance, transfer.moves(directory, f'{directory}_resize'),
                resize.source_compute)
            # nova leaves the directory where the disks are elsewhere.
            transfer.remove_all(directory)
