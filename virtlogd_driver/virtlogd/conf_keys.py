# SPDX-License-Identifier: Apache-2.0
"""Each key of libvirt's files takes values of one type and range.

A daemon ends, or libvirt has no QEMU driver, with a value of the wrong type
or out of range; a key that it does not know is nothing to it. So is one that
is not known here, as newer releases have more.

Sources: src/logging/log_daemon_config.c, src/qemu/qemu_conf.c, the getters of
src/util/virconf.c and the formats of src/util/virlog.c.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Value = int | str | list['Value']


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value says what is allowed."""

    #: For people, after "must be".
    allowed: str
    takes: Callable[[Value], bool]


#: libvirt reads a number without quotes as a long long.
_MOST = 2 ** 63 - 1


def _number(lowest: int, highest: int) -> Kind:
    allowed = (f'an integer from {lowest}' if highest == _MOST
               else f'an integer from {lowest} to {highest}')
    return Kind(allowed, lambda value: isinstance(value, int)
                and lowest <= value <= highest)


def _each(allowed: str, word: str) -> Kind:
    """Make a kind of words; as libvirt has it, blanks alone between them."""
    pattern = re.compile(word, re.DOTALL)

    def takes(value: Value) -> bool:
        return isinstance(value, str) and all(
            pattern.fullmatch(one) for one in value.split(' ') if one)
    return Kind(allowed, takes)


def _is_list(value: Value) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, str) for one in value)


#: As virStrToLong and virScaleInteger read it (src/util/virutil.c).
_BYTES = re.compile(
    r'[ \t\n\v\f\r]*\+?0*([0-9]{1,20})(|b|bytes?|([kmgtpe])(|i?b))',
    re.ASCII | re.IGNORECASE)
_MOST_BYTES = 2 ** 64 - 1


def bytes_of(value: Value) -> int | None:
    """Give the bytes that a size says; None: it says none.

    A number; or from libvirt 12.8 on a number with a unit, in quotes, where a
    letter alone and "iB" are powers of 1024, "B" ones of 1000.
    """
    if isinstance(value, int):
        return value if 0 <= value <= _MOST else None
    found = _BYTES.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    number, _, letter, end = found.groups()
    base = 1000 if end and end.lower() == 'b' else 1024
    size: int = int(number) * (
        base ** ('kmgtpe'.index(letter.lower()) + 1) if letter else 1)
    return size if size <= _MOST_BYTES else None


BOOL = Kind('0 or 1', lambda value: value in (0, 1) and not isinstance(
    value, str))
INT = _number(-2 ** 31, 2 ** 31 - 1)
UINT = _number(0, 2 ** 32 - 1)
SIZE = _number(0, _MOST)
BYTES = Kind('an integer from 0, or a size in quotes such as "2MiB"',
             lambda value: bytes_of(value) is not None)
STRING = Kind('a string in quotes', lambda value: isinstance(value, str))
STRINGS = Kind('a list of strings', _is_list)
STRING_OR_STRINGS = Kind(
    'a string or a list of strings',
    lambda value: isinstance(value, str) or _is_list(value))
_LIMIT = Kind('"unlimited" or an integer from 0',
              lambda value: value == 'unlimited' or SIZE.takes(value))

_PRIORITY = r'\+?0*[1-4]'
#: Keys of virtlogd.conf; of those from libvirt 9.1 on the last two.
VIRTLOGD: Mapping[str, Kind] = {
    'log_level': _number(0, 4),
    'log_filters': _each(
        'a string such as "3:util 4:rpc"',
        rf'{_PRIORITY}:(?!\+?(:|$)).*'),
    'log_outputs': _each(
        'a string such as "3:journald" or "3:file:/var/log/virtlogd.log"',
        rf'{_PRIORITY}:(stderr|journald|syslog:[^:]*|file:[^:]+)'),
    'max_clients': UINT,
    'admin_max_clients': UINT,
    'max_size': BYTES,
    'max_backups': SIZE,
    'max_age_days': SIZE,
    'log_root': STRING,
}

_QEMU = {
    BOOL: """
        auto_dump_bypass_cache auto_start_bypass_cache
        backup_tls_x509_verify chardev_tls chardev_tls_x509_verify
        default_tls_x509_verify dump_guest_core dynamic_ownership log_timestamp
        mac_filter migrate_tls_force migrate_tls_x509_verify nbd_tls
        nographics_allow_host_audio relaxed_acs_check remember_owner
        security_default_confined security_require_confined set_process_name
        spice_auto_unix_socket spice_sasl spice_tls vnc_allow_host_audio
        vnc_auto_unix_socket vnc_sasl vnc_tls vnc_tls_x509_verify vxhs_tls""",
    INT: 'keepalive_interval seccomp_sandbox',
    UINT: """
        gluster_debug_level keepalive_count max_files max_processes max_queued
        max_threads_per_process migration_port_max migration_port_min
        remote_display_port_max remote_display_port_min
        remote_websocket_port_max remote_websocket_port_min""",
    STRING: """
        auto_dump_path backup_tls_x509_cert_dir backup_tls_x509_secret_uuid
        bridge_helper chardev_tls_x509_cert_dir chardev_tls_x509_secret_uuid
        dbus_daemon default_tls_x509_cert_dir default_tls_x509_secret_uuid
        deprecation_behavior dump_image_format group lock_manager
        memory_backing_dir migrate_tls_x509_cert_dir
        migrate_tls_x509_secret_uuid migration_address migration_host
        nbd_tls_x509_cert_dir nbd_tls_x509_secret_uuid pr_helper
        save_image_format sched_core slirp_helper snapshot_image_format
        spice_listen spice_password spice_sasl_dir spice_tls_x509_cert_dir
        stdio_handler swtpm_group swtpm_user user vnc_listen vnc_password
        vnc_sasl_dir vnc_tls_x509_cert_dir vnc_tls_x509_secret_uuid
        vxhs_tls_x509_cert_dir vxhs_tls_x509_secret_uuid""",
    STRINGS: """
        capability_filters cgroup_controllers cgroup_device_acl namespaces
        nvram""",
    STRING_OR_STRINGS: 'hugetlbfs_mount security_driver',
    _LIMIT: 'max_core',
}
#: Keys of qemu.conf.
QEMU: Mapping[str, Kind] = {
    key: kind for kind, keys in _QEMU.items() for key in keys.split()}


def mistakes(values: Mapping[str, Value],
             keys: Mapping[str, Kind]) -> Iterator[str]:
    """Find what a daemon would not take, each as what it must be.

    :param values: what a file says
    :param keys: what is known of the file's keys
    """
    for key, value in values.items():
        kind = keys.get(key)
        if kind is not None and not kind.takes(value):
            yield f'{key} must be {kind.allowed}'
