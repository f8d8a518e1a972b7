# SPDX-License-Identifier: Apache-2.0
"""A real nova boots a real Linux guest with both consoles, step by step.

Run by ``tools/demo.sh``, in namespaces of its own, as
``python -m tools.demo IMAGE``.
"""

from tests.lab import concurrency  # noqa: F401

# isort: split
import contextlib
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from lxml import etree
from nova.conf import CONF

from tests.lab.daemons import LibvirtHost
from tests.lab.linux_guest import PROMPT, READY
from tests.lab.nova_node import NovaNode, Server
from tests.lab.relay import Relay
from tests.lab.wait import until
from tools.setup import counts

#: What virtlogd keeps here: four files of 64 KiB.
MAX_SIZE = 64 * 1024
MAX_BACKUPS = 3
#: [virtlogd] max_console_bytes, which is the default
LIMIT = 100 * 1024
LOAD_LINES = 25000

COLOURS = {'bold': '1', 'dim': '2', 'good': '32', 'bad': '31', 'code': '36'}


def coloured(text: str, colour: str) -> str:
    """With an escape sequence, on a terminal."""
    if not sys.stdout.isatty():
        return text
    return f'\x1b[{COLOURS[colour]}m{text}\x1b[0m'


class Demo:
    """The steps, and what they leave for the next one."""

    def __init__(self, image: bytes, stack: contextlib.ExitStack) -> None:
        self._image = image
        self._stack = stack
        self._begin = time.monotonic()
        self._directory = Path(stack.enter_context(
            tempfile.TemporaryDirectory(prefix='virtlogd-demo-')))
        self.host: LibvirtHost
        self.nova: NovaNode
        self.server: Server

    # Output

    def say(self, text: str, colour: str | None = None) -> None:
        for line in text.splitlines():
            print('          ' + (coloured(line, colour) if colour else line),
                  flush=True)

    def log(self, text: str) -> None:
        """A piece of the guest's log, or of its XML."""
        self.say('\n'.join('| ' + line for line in text.splitlines()), 'code')

    @contextlib.contextmanager
    def _step(self, number: int, title: str) -> Iterator[None]:
        print(f'\n{self._elapsed():6.1f} s  '
              + coloured(f'{number}. {title}', 'bold'), flush=True)
        begin = time.monotonic()
        yield
        self.say(coloured('ok', 'good')
                 + coloured(f', {time.monotonic() - begin:.1f} s', 'dim'))

    def _elapsed(self) -> float:
        return time.monotonic() - self._begin

    def run(self) -> None:
        """All steps; the first that fails ends it."""
        steps: list[tuple[str, Callable[[], None]]] = [
            ('A private libvirtd and virtlogd', self.start_daemons),
            ('nova starts, and loads its driver', self.start_nova),
            ('A server boots a small Linux guest', self.boot),
            ('What the guest was given', self.show_xml),
            ('Its boot messages, from os-getConsoleOutput', self.show_boot),
            ('Both consoles at once', self.type_command),
            ('The log is rotated under load, and read whole', self.rotate),
            ('A hard reboot: the old log is still there', self.hard_reboot),
            ('Two viewers at once, through the relay', self.two_viewers),
            ('Stopped: the log can still be read', self.stop),
            ('Deleted: nothing is left', self.delete),
        ]
        for number, (title, step) in enumerate(steps, 1):
            with self._step(number, title):
                step()
        print('\n' + coloured(
            f'All {len(steps)} steps passed, in {self._elapsed():.0f} s.',
            'good'))

    # The steps

    def start_daemons(self) -> None:
        self.host = self._stack.enter_context(LibvirtHost(
            self._directory / 'host', max_size=MAX_SIZE,
            max_backups=MAX_BACKUPS))
        connection = self.host.connect()
        libvirt_version, qemu_version = (
            f'{n // 1000000}.{n // 1000 % 1000}.{n % 1000}' for n in (
                connection.getLibVersion(), connection.getVersion()))
        self.say(f'libvirt {libvirt_version}, QEMU {qemu_version}; virtlogd '
                 f'keeps {MAX_BACKUPS + 1} files of {MAX_SIZE // 1024} KiB')

    def start_nova(self) -> None:
        self.nova = self._stack.enter_context(NovaNode(
            self.host, self._directory / 'nova', image=self._image,
            options={('virtlogd', 'max_console_bytes'): LIMIT}))
        driver = type(self.nova.driver)
        self.say(f'compute_driver = {self.nova.compute_driver}')
        self.say(f'loaded: {driver.__module__}.{driver.__qualname__}')
        reason = re.search(r'Guest consoles: .*', self.nova.log())
        assert reason, 'the driver did not say what this host can do'
        self.say(reason[0])

    def boot(self) -> None:
        self.server = self.nova.boot()
        self.say(f'server {self.server["id"]} is {self.server["status"]}')

    def show_xml(self) -> None:
        serials = self.nova.guest_xml(self.server).findall('devices/serial')
        assert serials, 'the guest has no serial port'
        for serial in serials:
            log = serial.find('log')
            assert serial.get('type') == 'tcp'
            assert log is not None
            assert log.get('append') == 'on'
            self.log(etree.tostring(serial, encoding='unicode').strip())

    def show_boot(self) -> None:
        output = self.nova.wait_for_output(self.server, READY, 90)
        lines = output.splitlines()
        first = next(n for n, line in enumerate(lines)
                     if 'Linux version' in line)
        last = next(n for n, line in enumerate(lines) if READY in line)
        shown = [lines[first][:70], '...', *lines[last - 1:last + 1]]
        self.log('\n'.join(shown))
        self.say(f'{len(lines)} lines')

    def type_command(self) -> None:
        host, port = self.nova.console_address(self.server)
        command = "echo $((6 * 7)) is what $(hostname) answers"
        answer = '42 is what guest answers'
        with self.nova.serial_console(self.server) as terminal:
            terminal.type(b'\r')
            terminal.read_until(PROMPT.encode())
            terminal.type(f'{command}\r'.encode())
            seen = terminal.read_until(f'{answer}\r\n'.encode())
            # While the serial console is still connected.
            output = self.nova.wait_for_output(self.server, answer + '\n')
        self.say(f'on the serial console ({host}:{port}):')
        self._log_answer(seen.decode(), answer)
        self.say('in the console log, meanwhile:')
        self._log_answer(output, answer)

    def _log_answer(self, text: str, answer: str) -> None:
        lines = text.splitlines()
        end = lines.index(answer) + 1
        self.log('\n'.join(lines[end - 2:end]))

    def _read(self) -> tuple[int, list[int]]:
        """How many bytes of log, and the numbers of the load's lines."""
        output = self.nova.console_output(self.server)
        # nova's API removes carriage returns; the first may be beyond.
        size = (len(output.encode()) + output.count('\n')
                - output.startswith('\n'))
        assert size <= LIMIT, f'{size} bytes are more than {LIMIT}'
        numbers = [int(n) for n in re.findall(r'^load (\d{6})$', output, re.M)]
        expected = list(range(numbers[0], numbers[-1] + 1)) if numbers else []
        assert numbers == expected, 'lines are missing, or there twice'
        return size, numbers

    def rotate(self) -> None:
        with self.nova.serial_console(self.server) as terminal:
            terminal.type(
                "awk 'BEGIN { for (n = 1; n <= LAST; n++) "
                'printf "load %06d\\n", n }\'\r'
                .replace('LAST', str(LOAD_LINES)).encode())
            terminal.read_until(b'load 000001\r\n')
        reads, size, numbers = 0, 0, [0]
        deadline = time.monotonic() + 90
        while numbers[-1] < LOAD_LINES:
            assert time.monotonic() < deadline, f'only {numbers[-1]} lines'
            size, numbers = self._read()
            reads += 1
        files = sorted(
            self.nova.instance_directory(self.server).glob('console.log*'))
        self.say(f'{LOAD_LINES} lines; ' + ', '.join(
            f'{file.name} {file.stat().st_size}' for file in files))
        assert len(files) == MAX_BACKUPS + 1, 'it was not rotated'
        self.say(f'{reads} reads meanwhile: no line missing, none twice, and '
                 f'at most {LIMIT} bytes')
        self.say(f'now: {size} bytes, lines {numbers[0]} to {numbers[-1]}')

    def hard_reboot(self) -> None:
        self.nova.reboot(self.server)
        last = f'load {LOAD_LINES:06d}'
        output = self.nova.wait_for_output(self.server, READY, 90)
        lines = output.splitlines()
        before, again = lines.index(last), next(
            n for n, line in enumerate(lines) if 'Linux version' in line)
        assert before < again, 'the old log is not before the new one'
        self.log('\n'.join([
            lines[before], '...', lines[again][:70], '...',
            next(line for line in lines[again:] if READY in line)]))
        serials = self.nova.guest_xml(self.server).findall('devices/serial')
        self.say(f'{len(serials)} serial port with its log, as before')
        assert len(serials) == 1

    def two_viewers(self) -> None:
        """The guest gets the relay with its next start."""
        CONF.set_override('relay', True, 'virtlogd')
        self._stack.enter_context(Relay(self.host.uri))
        boots = self.nova.console_output(self.server).count('Linux version')
        self.nova.reboot(self.server)

        def booted() -> bool:
            output = self.nova.console_output(self.server)
            return (output.count('Linux version') > boots
                    and READY in output.rpartition('Linux version')[2])
        until(booted, 'the guest has booted', 90)
        with (self.nova.serial_console(self.server) as one,
              self.nova.serial_console(self.server) as two):
            for number, typing in enumerate((one, two), 1):
                typing.type(f'echo $((6 * 7)) is what viewer {number} asked'
                            '\r'.encode())
                for viewer in (one, two):
                    viewer.read_until(
                        f'42 is what viewer {number} asked\r\n'.encode())
        host, port = self.nova.console_address(self.server)
        self.say(f'both type, and see the same ({host}:{port}):')
        for number, viewer in enumerate((one, two), 1):
            self.say(f'viewer {number}:')
            self.log('\n'.join(line for line in viewer.seen.decode(
                ).splitlines() if line.startswith('42 is')))

    def stop(self) -> None:
        before = self.nova.console_output(self.server)
        self.server = self.nova.stop(self.server)
        output = self.nova.console_output(self.server)
        # The guest had time to say more, not less.
        assert before[-1000:] in output, 'a part of it is gone'
        self.say(f'the server is {self.server["status"]}; '
                 f'{len(output.splitlines())} lines')

    def delete(self) -> None:
        directory = self.nova.instance_directory(self.server)
        self.nova.delete(self.server)
        assert not directory.exists(), f'{directory} is still there'
        assert self.host.connect().listAllDomains() == []
        self.say('no guest, no directory, no log')


def main() -> int:
    image = Path(sys.argv[1]).read_bytes()
    demo = None
    with contextlib.ExitStack() as stack:
        try:
            demo = Demo(image, stack)
            demo.run()
            counts.add('demo', counts.Counts(1, 0, 0))
        except Exception as e:
            print(coloured(f'\nFAILED: {e or type(e).__name__}', 'bad'),
                  file=sys.stderr)
            traceback.print_exc()
            with contextlib.suppress(AttributeError):
                print(demo.nova.log()[-4000:], file=sys.stderr)
            counts.add('demo', counts.Counts(0, 1, 0))
            return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
