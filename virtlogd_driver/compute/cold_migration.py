# SPDX-License-Identifier: Apache-2.0
"""A guest's history goes along when it is resized, moved, rebuilt, evacuated.

In the order in which nova calls it.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from nova import exception as nova_exception
from nova import objects
from nova.compute import power_state, task_states
from nova.objects import fields
from nova.virt.libvirt.utils import get_instance_path

from virtlogd_driver.compute.consoles import Consoles
from virtlogd_driver.compute.histories import Histories, look_up, stat_of
from virtlogd_driver.compute.nova_edge import nova_errors
from virtlogd_driver.compute.options import Options
from virtlogd_driver.compute.starts import Starts
from virtlogd_driver.console_log import generation
from virtlogd_driver.history import delivery, files, history, logs, outbox


def is_expected(uuid: str) -> bool:
    """Tell whether a guest may still come to this host.

    One that is deleted does not, nor does one with which nothing is going on.
    One that nova's database does not know may (histories.look_up).
    """
    instance = look_up(uuid)
    return instance is None or not (
        instance.deleted or instance.task_state is None)


class ColdMigration:
    """Guests move while they are off, or are built anew."""

    def __init__(self, options: Options, consoles: Consoles, starts: Starts,
                 histories: Histories) -> None:
        self._options = options
        self._consoles = consoles
        self._starts = starts
        self._histories = histories
        # UUIDs of guests that are just rebuilt here.
        self._rebuilt: set[str] = set()

    def evacuated(self, instance: Any) -> None:
        """Let a guest that is evacuated to this host go on in new logs.

        The host that was lost may come back, and write into the old ones
        where the directory is shared.
        """
        if instance.uuid in self._rebuilt:
            self._rebuilt.discard(instance.uuid)
            return
        directory = get_instance_path(instance)
        kept = self._histories.kept()
        kept.begin_next(instance, directory)
        kept.cut(instance, directory)

    def check(self, instance: Any, flavor: Any, dest: str,
              here: str) -> None:
        """Refuse a move after which the guest could not have its console.

        Called before the guest is shut down.

        :param flavor: nova's Flavor that it is to have
        :param dest: address of the destination
        :param here: address of this host
        :raises NovaException: what is missing, and the remedy
        """
        with nova_errors():
            self._consoles.plan(flavor, instance.image_meta)
        if dest == here and instance.power_state == power_state.RUNNING:
            self._starts.check(instance)

    def leave(self, context: Any, instance: Any, dest: str,
              here: str) -> None:
        """Let the logs go along with a guest that leaves.

        It is off, and nova has moved its directory out of the way.

        :param dest: address of the destination
        :param here: address of this host
        """
        directory = get_instance_path(instance)
        resized = logs.resized(directory)
        kept = self._histories.kept()
        uuid = instance.uuid
        with history.errors_logged(instance):
            if dest == here:
                kept.take_along(instance, uuid, resized, directory)
                return
            host = self._destination(context, instance)
            # nova has made the directory anew where the storage is shared.
            if _is_there(directory):
                if host and stat_of(context.elevated(), host) is None:
                    kept.leave_aside(instance, uuid, resized, directory)
                else:
                    kept.take_along(instance, uuid, resized, directory)
                    kept.begin_next(instance, directory)
                return
            path = self._histories.prepare(
                instance, self._histories.departure(
                    context, instance, host, dest, directory=resized))
            if path is not None:
                self._histories.try_now(
                    path, delivery.Target(dest, directory))

    @staticmethod
    def _destination(context: Any, instance: Any) -> str:
        """Look up the name of a guest's destination; '': it is not known."""
        for status in ('migrating', 'pre-migrating'):
            with history.errors_logged(instance):
                try:
                    return str(objects.Migration.get_by_instance_and_status(
                        context.elevated(), instance.uuid, status
                    ).dest_compute)
                except nova_exception.MigrationNotFoundByStatus:
                    continue
        return ''

    def arrive(self, context: Any, instance: Any, move: Any) -> None:
        """Put in place what has come, before the guest is started here.

        Where its history is late it begins with generation 1, which that
        still goes before. One comes if the source has this driver.

        :param move: nova's Migration
        """
        directory = get_instance_path(instance)
        place = self._histories.place(instance.uuid, directory, instance)
        kept = self._histories.kept()
        kept.receive(instance, instance.uuid, place)
        with history.errors_logged(instance):
            if not logs.ports(directory) and stat_of(
                    context.elevated(), move.source_compute) is not None:
                history.begin_logs([
                    os.path.join(directory, generation.live_name(port, 1))
                    for port in range(self._consoles.plan(
                        instance.flavor, instance.image_meta).ports)])

    def confirm(self, instance: Any) -> None:
        """Keep what the other host does not have yet of a guest's logs.

        nova deletes the directory that the guest has left next.
        """
        directory = get_instance_path(instance)
        kept = self._histories.kept()
        with history.errors_logged(instance):
            if instance.host == self._options.host:
                self._histories.recover(instance)
                return
            if _is_there(directory):
                # Both share it, and the guest's own host may write there.
                return
            path = kept.confirm(instance, instance.uuid, directory)
            if path is not None:
                self._histories.send(path)

    def come_back(self, instance: Any, resize: Any) -> None:
        """Bring back the logs of a guest whose move is reverted.

        Called before the guest is started here.

        :param resize: nova's Migration
        """
        directory = get_instance_path(instance)
        before = logs.resized(directory)
        uuid = instance.uuid
        kept = self._histories.kept()
        with history.errors_logged(instance):
            for path in outbox.paths(self._options.instances_path, uuid):
                kept.forget(instance, path)
        with history.errors_logged(instance):
            if _is_there(directory) and _is_there(before):
                kept.bring_back(instance, uuid, directory)
                if resize.source_compute != resize.dest_compute:
                    kept.begin_next(instance, before)
        kept.receive(instance, uuid, self._histories.place(
            uuid, before, instance))

    @contextlib.contextmanager
    def saved(self, context: Any, instance: Any,
              destroy_disks: bool) -> Iterator[None]:
        """Keep logs elsewhere while nova deletes the instance directory."""
        directory = get_instance_path(instance)
        # None: the database does not say.
        rebuilt: bool | None = None
        with history.errors_logged(instance):
            rebuilt = bool(
                destroy_disks
                and instance.get('task_state', None) == task_states.REBUILDING
                and not self._goes_elsewhere(context, instance))
        if rebuilt is False:
            with history.errors_logged(instance):
                self._save(context, instance, destroy_disks, directory)
            yield
            return
        self._histories.wait_for_history(instance)
        kept = self._histories.kept()
        with kept.before_deletion(instance, instance.uuid):
            kept.set_aside(instance, directory)
            try:
                yield
            finally:
                # Else they are put back as the guest starts, if it does here.
                if rebuilt:
                    self._rebuilt.add(instance.uuid)
                    kept.put_back(instance, directory)

    def _save(self, context: Any, instance: Any, destroy_disks: bool,
              directory: str) -> None:
        if destroy_disks:
            self._histories.gone(instance.uuid)
        # Where the directory that is gone back to is here, come_back sees to
        # it.
        if (instance.get('task_state', None) == task_states.RESIZE_REVERTING
                and _is_there(directory)
                and not _is_there(logs.resized(directory))):
            self._send_back(context, instance, directory)

    def _goes_elsewhere(self, context: Any, instance: Any) -> bool:
        """Tell whether a guest was evacuated while this host was lost.

        nova deletes it then (nova/compute/manager.py,
        _destroy_evacuated_instances), in the task state of a rebuild: that of
        the evacuation, or of one where the guest has come to.
        """
        if instance.host != self._options.host:
            return True
        return bool(objects.MigrationList.get_by_filters(
            context.elevated(), {
                'instance_uuid': instance.uuid,
                'source_compute': self._options.host,
                'migration_type': fields.MigrationType.EVACUATION,
                'status': ['accepted', 'pre-migrating']}))

    def _send_back(self, context: Any, instance: Any, directory: str) -> None:
        """Send what was written here to the host that a guest goes back to.

        That host has kept what was written before.
        """
        resize = objects.Migration.get_by_instance_and_status(
            context.elevated(), instance.uuid, 'reverting')
        # In another cell it has kept the directory under its own name; where
        # that is shared it is this one.
        if resize.cross_cell_move:
            return
        first = {port: min(logs.generations(directory, port), default=0)
                 for port in logs.ports(directory)}
        departure = self._histories.departure(
            context, instance, resize.source_compute, stint=first,
            directory=directory)
        path = self._histories.kept().leave(
            instance, instance.uuid,
            self._histories.prepare(instance, departure), directory)
        if path is not None:
            self._histories.try_now(path, delivery.Target(
                departure.address, logs.resized(directory)))


def _is_there(directory: str) -> bool:
    """Tell whether there is a directory, or a link to one, as nova does.

    :raises OSError: its disk does not tell
    """
    return files.is_directory(directory, follow=True)
