# SPDX-License-Identifier: Apache-2.0
"""What the relay is asked: from whom, how much, and for how long."""

import asyncio
import json
import os
import socket
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from virtlogd_driver import exception
from virtlogd_driver.relay import control
from virtlogd_driver.relay.control import Request

REQUEST = Request('take', ('192.0.2.7', 40000), 10000)
GOOD = b'{"turn": "take", "viewer": ["192.0.2.7", 40000], "port": 10000}\n'


def answering(path: Path, test: Callable[[], Awaitable[None]],
              refusal: str = '') -> list[Request]:
    """Run a test beside a relay; what was asked of it."""
    asked: list[Request] = []

    async def handle(request: Request) -> None:
        asked.append(request)
        if refusal:
            raise exception.HostError(refusal)

    async def run() -> None:
        made = control.listen(str(path))
        assert made is not None
        serving = asyncio.create_task(control.serve(made, handle))
        try:
            async with asyncio.timeout(30):
                await test()
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
    asyncio.run(run())
    return asked


async def sent(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def test_a_request_and_its_answer(tmp_path: Path) -> None:
    path = tmp_path / 'socket'

    async def test() -> None:
        await asyncio.to_thread(control.ask, str(path), REQUEST)
        assert await sent(path, GOOD) == b'{}\n'
    assert answering(path, test) == [REQUEST, REQUEST]


def test_a_refusal_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / 'socket'

    async def test() -> None:
        with pytest.raises(exception.HostError,
                           match=r'^The relay refuses: no viewer\.$'):
            await asyncio.to_thread(control.ask, str(path), REQUEST)
    answering(path, test, 'no viewer')


@example(GOOD[:-1])
@example(GOOD.replace(b'take', b'keep'))
@example(GOOD.replace(b'40000', b'"40000"'))
@example(GOOD.replace(b'}', b', "more": 1}'))
@example(b'[' * 2000 + b'\n')
@example(b'\xff\n')
@example(b'null\n')
@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(['turn', 'viewer', 'port', 'x']), inner),
    max_leaves=9).map(lambda value: json.dumps(value).encode() + b'\n'))
def test_what_is_no_request_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r'.'):
        control.parse(data)


@pytest.mark.parametrize('data', [
    b'', b'{', b'{}\n', b'x' * 1_000_000, GOOD[:-1]])
def test_what_is_no_request_is_answered(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / 'socket'

    async def test() -> None:
        try:
            answer = await sent(path, data)
        except OSError:   # it does not read to the end of a megabyte
            assert len(data) > 4096
        else:
            assert 'error' in json.loads(answer) or len(data) > 4096
        assert await sent(path, GOOD) == b'{}\n'
    assert answering(path, test) == [REQUEST]


def test_who_says_nothing_keeps_nobody_waiting(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'socket'

    async def test() -> None:
        silent = [await asyncio.open_unix_connection(str(path))
                  for _ in range(100)]
        assert await sent(path, GOOD) == b'{}\n'
        monkeypatch.setattr(control, 'PATIENCE', 0.1)
        late = await asyncio.open_unix_connection(str(path))
        assert await late[0].read() == b''
        for _, writer in [*silent, late]:
            writer.close()
    answering(path, test)


def test_only_its_user_may_ask(tmp_path: Path) -> None:
    path = tmp_path / 'socket'
    before = os.umask(0)
    try:
        made = control.listen(str(path))
    finally:
        os.umask(before)
    assert made is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made.close()
    # One that was killed has left it.
    again = control.listen(str(path))
    assert again is not None
    again.close()


def test_another_relay_takes_no_socket_away(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that is started by hand, beside the service, say."""
    path = tmp_path / 'socket'

    async def test() -> None:
        assert control.listen(str(path)) is None
        assert await sent(path, GOOD) == b'{}\n'

    assert answering(path, test) == [REQUEST]
    assert 'Address already in use' in caplog.text


@pytest.mark.parametrize('where', ['none/socket', 'file', 'x' * 200])
def test_where_it_cannot_listen(tmp_path: Path, where: str,
                                caplog: pytest.LogCaptureFixture) -> None:
    """A file of somebody else's stays."""
    (tmp_path / 'file').write_text('precious')
    assert control.listen(str(tmp_path / where)) is None
    (said,) = caplog.messages
    assert f'relay_socket = {tmp_path / where}' in said
    assert (tmp_path / 'file').read_text() == 'precious'


def test_no_relay(tmp_path: Path) -> None:
    with pytest.raises(exception.HostError, match=r'relay\.service runs'):
        control.ask(str(tmp_path / 'none'), REQUEST)
    (tmp_path / 'file').touch(0)
    with pytest.raises(exception.HostError, match='relay_socket ='):
        control.ask(str(tmp_path / 'file'), REQUEST)


@pytest.mark.parametrize('answer', [
    b'', b'HTTP/1.0 400\r\n', b'[]\n', b'{', b'y' * 10_000])
def test_another_that_answers(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / 'socket'
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()

        def serve() -> None:
            connected, _ = other.accept()
            with connected:
                connected.recv(4096)
                connected.sendall(answer)
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(exception.HostError, match='is no relay'):
            control.ask(str(path), REQUEST)
        thread.join()


def test_a_relay_that_hangs(tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, 'PATIENCE', 0.1)
    path = tmp_path / 'socket'
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(exception.HostError, match='cannot be asked'):
            control.ask(str(path), REQUEST)
