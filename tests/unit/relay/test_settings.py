# SPDX-License-Identifier: Apache-2.0
"""The relay is told its settings, and refuses what is wrong."""

import pytest

from virtlogd_driver import exception
from virtlogd_driver.relay import settings


def made(**changes) -> settings.Settings:
    return settings.Settings(**{
        'address': '192.0.2.1', 'guest_address': '127.20.0.1', 'allowed': (),
        'writers': 'all', 'buffer_size': 1 << 20, 'context_size': 1 << 14,
        'viewer_timeout': 30, 'port_viewers': 4, 'host_viewers': 9,
        **changes})


@pytest.mark.parametrize(('peer', 'may'), [
    ('127.0.0.1', True), ('::1', True), ('192.0.2.1', True),
    ('::ffff:192.0.2.1', True), ('192.0.2.2', False), ('192.0.2.99', True),
    ('::ffff:192.0.2.99', True), ('2001:db8::5', True),
    ('2001:db9::5', False), ('fe80::1%eth0', False)])
def test_who_may_connect(peer, may) -> None:
    allowed = settings.check_allowed(
        ['192.0.2.96/29', '2001:db8::/32'], '192.0.2.1')
    assert made(allowed=allowed).may_connect(peer) == may


@pytest.mark.parametrize('wildcard', [
    '0.0.0.0', '::', '::ffff:0.0.0.0'])  # noqa: S104
def test_a_wildcard_cannot_be_listened_on(wildcard) -> None:
    with pytest.raises(exception.InvalidOption,
                       match=r'proxyclient_address.*the one address'):
        settings.check_outer(wildcard)


def test_a_name_is_looked_up() -> None:
    assert settings.check_outer('localhost') in ('127.0.0.1', '::1')
    assert settings.check_outer('192.0.2.1') == '192.0.2.1'
    with pytest.raises(exception.InvalidAddress,
                       match=r'proxyclient_address.*no-such-host'):
        settings.check_outer('no-such-host.invalid')


@pytest.mark.parametrize('text', [
    '192.0.2.1', '::1', 'localhost', '', '127.0.0.1/8'])
def test_guests_listen_below_127_only(text) -> None:
    with pytest.raises(exception.InvalidOption,
                       match=r'relay_guest_address.*127\.0\.0\.0/8'):
        settings.check_inner(text, '192.0.2.1')


def test_guests_do_not_listen_where_the_relay_does() -> None:
    with pytest.raises(exception.InvalidOption, match='another address'):
        settings.check_inner('127.0.0.1', '127.0.0.1')
    assert settings.check_inner('127.20.0.1', '127.0.0.1') == '127.20.0.1'


def test_nobody_is_locked_out_in_silence() -> None:
    with pytest.raises(exception.InvalidOption,
                       match=r'relay_allowed.*nova-serialproxy'):
        settings.check_allowed(None, '192.0.2.1')
    assert settings.check_allowed(None, '127.0.0.1') == ()
    assert settings.check_allowed([], '192.0.2.1') == ()


@pytest.mark.parametrize('text', ['proxy1', '192.0.2.1/24', '192.0.2.0/33'])
def test_what_is_no_network(text) -> None:
    with pytest.raises(exception.InvalidOption) as raised:
        settings.check_allowed(['192.0.2.9', text], '192.0.2.1')
    assert text in str(raised.value)
