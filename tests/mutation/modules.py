# SPDX-License-Identifier: Apache-2.0
"""These modules are broken on purpose, and these tests have to notice."""

_LOG = 'tests/unit/console_log'
_HISTORY = 'tests/unit/history'
_GUEST = 'tests/unit/guest'

MODULES: dict[str, list[str]] = {
    'console_log/generation': [f'{_LOG}/test_generation.py'],
    'console_log/neighbours': [f'{_LOG}/test_neighbours.py'],
    'console_log/chain': [f'{_LOG}/test_chain.py', f'{_LOG}/test_log.py',
                          f'{_LOG}/test_damage.py'],
    'console_log/log': [f'{_LOG}/test_log.py', f'{_LOG}/test_damage.py'],
    'console_log/descriptor_store': [f'{_LOG}/test_descriptor_store.py',
                                     f'{_LOG}/test_damage.py'],
    'console_log/reader': [f'{_LOG}/test_reader.py'],
    'console_log/privileged': [f'{_LOG}/test_privileged.py'],
    'guest/serial_port': [f'{_GUEST}/test_serial_port.py'],
    'guest/plan': [f'{_GUEST}/test_plan.py'],
    'guest/migration': [f'{_GUEST}/test_migration.py'],
    'history/record': [f'{_HISTORY}/test_record.py'],
    'history/boot': [f'{_HISTORY}/test_boot.py'],
    'history/files': [f'{_HISTORY}/test_files.py'],
    'history/logs': [f'{_HISTORY}/test_logs.py',
                     f'{_HISTORY}/test_inbox.py'],
    'history/inbox': [f'{_HISTORY}/test_inbox.py',
                      f'{_HISTORY}/test_outbox.py'],
    'history/outbox': [f'{_HISTORY}/test_outbox.py',
                       f'{_HISTORY}/test_history.py'],
    'history/delivery': [f'{_HISTORY}/test_delivery.py'],
    'history/arrivals': [f'{_HISTORY}/test_arrivals.py'],
    'history/carrier': [f'{_HISTORY}/test_carrier.py'],
    'history/exclusive': [f'{_HISTORY}/test_exclusive.py'],
    'history/history': [f'{_HISTORY}/test_history.py',
                        f'{_HISTORY}/test_promised.py'],
    'virtlogd/health': ['tests/unit/virtlogd/test_health.py',
                        'tests/unit/virtlogd/test_periodic.py'],
}
