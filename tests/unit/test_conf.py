# SPDX-License-Identifier: Apache-2.0
import pathlib

import pytest
from oslo_config import cfg, generator

from virtlogd_driver import conf

SAMPLE = (pathlib.Path(__file__).parents[2]
          / 'etc/nova/virtlogd-driver.conf.sample')


def _registered() -> cfg.ConfigOpts:
    found = cfg.ConfigOpts()
    conf.register_opts(found)
    return found


def _read(tmp_path: pathlib.Path, line: str) -> cfg.ConfigOpts:
    path = tmp_path / 'nova.conf'
    path.write_text(f'[virtlogd]\n{line}\n')
    found = _registered()
    found(['--config-file', str(path)], project='nova')
    return found


def test_the_sample_is_what_the_options_say() -> None:
    """Run ``tox -e genconfig`` after an option changes."""
    generated = cfg.ConfigOpts()
    generator.register_cli_opts(generated)
    generated(['--namespace', 'virtlogd_driver', '--wrap-width', '79'])
    import io
    text = io.StringIO()
    generator.generate(generated, text)
    assert SAMPLE.read_text() == text.getvalue()


def test_defaults() -> None:
    found = _registered()
    found([], project='nova')
    assert found.virtlogd.max_console_bytes == 102400
    assert found.virtlogd.fallback_device == 'file'


def test_the_unit_of_the_relay_makes_the_directory_of_its_socket() -> None:
    found = _registered()
    found([], project='nova')
    unit = (SAMPLE.parents[1] / 'systemd/virtlogd-console-relay.service'
            ).read_text().splitlines()
    (name,) = [line.partition('=')[2] for line in unit
               if line.startswith('RuntimeDirectory=')]
    assert pathlib.Path(found.virtlogd.relay_socket).parent == (
        pathlib.Path('/run') / name)


@pytest.mark.parametrize(('line', 'value'), [
    ('max_console_bytes = 0', '0'),
    ('max_console_bytes = -5', '-5'),
    ('max_console_bytes = many', 'many'),
    ('fallback_device = pty', 'pty'),
    ('health_timeout = nan', 'nan'),
    ('health_timeout = inf', 'inf'),
    # Python's waits would end in a traceback.
    ('health_timeout = 1e10', '1e10'),
    ('health_interval = 10000000000', '10000000000'),
    ('history_timeout = 10000000000', '10000000000'),
])
def test_a_bad_value_is_named_with_its_option(tmp_path, line, value) -> None:
    option = line.split()[0]
    with pytest.raises(cfg.ConfigFileValueError) as raised:
        getattr(_read(tmp_path, line).virtlogd, option)
    assert option in str(raised.value)
    assert value in str(raised.value)


@pytest.mark.parametrize('option', conf.OPTS, ids=lambda o: o.name)
def test_every_help_text_says_what_is_possible(option: cfg.Opt) -> None:
    assert option.help.strip()
    assert 'Possible values:' in option.help or option.type.choices, (
        f'{option.name}: help texts follow those of nova')
