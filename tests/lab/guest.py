# SPDX-License-Identifier: Apache-2.0
"""A guest of 512 bytes writes lines that a test knows beforehand.

The boot sector writes lines on its serial ports::

    line 00000001\\r\\n
    line 00000002\\r\\n

as fast as the port takes them or at a pace, without end or up to a number.
What is typed on a port comes back on that port as one piece, once it ends in
carriage return or line feed: ``typed text\\r\\n``, between two lines.

It boots in well under a second in emulation, and ignores ACPI unless it is
asked to listen to the power button: then it switches itself off.
"""

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from lxml import etree
from lxml.builder import E

#: Seconds between two interrupts of a PC's timer, as the BIOS sets it up.
TICK = 65536 / 1193182

_ORIGIN = 0x7c00         # where a BIOS loads a boot sector
_PARTITIONS = 446        # the code must end before the partition table
_BUFFERS = 0x8000        # typed text, 256 bytes a port
_LAST_TICK = 0x7e00      # the word after the boot sector
_BIOS_TICKS = 0x046c     # the BIOS counts them here
_PATIENCE = 0x2000       # looks for the next character, some milliseconds
_PM1_STATUS = 0x600      # where SeaBIOS puts a PC's power management
_PM1_ENABLE = _PM1_STATUS + 2
_PM1_CONTROL = _PM1_STATUS + 4
_BUTTON = 0x100          # in the first two
_OFF = 0x2000            # in the last one: sleep, as deep as it gets
_PORTS = (0x3f8, 0x2f8, 0x3e8, 0x2e8)   # COM1 to COM4
_SECTOR = 512
_IMAGE = 1024 * 1024


class _Code:
    """Machine code with names for places in it."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._places: dict[str, int] = {}
        self._words: list[tuple[int, str]] = []
        self._offsets: list[tuple[int, str, int]] = []

    def place(self, name: str) -> None:
        self._places[name] = len(self._bytes)

    def add(self, *parts: int | bytes | str) -> None:
        """Bytes; a name stands for its address, in 16 bits."""
        for part in parts:
            if isinstance(part, str):
                self._words.append((len(self._bytes), part))
                self._bytes += b'\0\0'
            elif isinstance(part, bytes):
                self._bytes += part
            else:
                self._bytes.append(part)

    def jump(self, opcode: int, name: str) -> None:
        """A short jump, or with opcode 0xe8 (call) and 0xe9 a near one."""
        size = 2 if opcode in (0xe8, 0xe9) else 1
        self._bytes.append(opcode)
        self._offsets.append((len(self._bytes), name, size))
        self._bytes += bytes(size)

    def assemble(self) -> bytes:
        for position, name in self._words:
            address = _ORIGIN + self._places[name]
            self._bytes[position:position + 2] = _word(address)
        for position, name, size in self._offsets:
            offset = self._places[name] - position - size
            self._bytes[position:position + size] = offset.to_bytes(
                size, 'little', signed=True)
        return bytes(self._bytes)


def _word(value: int) -> bytes:
    return value.to_bytes(2, 'little')


# Opcodes of jumps
_CALL, _JMP_NEAR, _JMP = 0xe8, 0xe9, 0xeb
_JB, _JE, _JNE, _JNS = 0x72, 0x74, 0x75, 0x79


def boot_sector(text: bytes = b'', count: int | None = None,
                interval: float = 0.0, burst: int = 1,
                ports: int = 1, button: bool = False,
                full: bool = False) -> bytes:
    """The boot sector.

    :param text: written once at the start, as it is; no NUL; up to some 150
        bytes.
    :param count: how many lines; 0: none; ``None``: without end.
    :param interval: seconds from one burst of lines to the next, rounded to
        whole ``TICK``; 0: as fast as it goes.
    :param burst: lines in a burst, 1 to 255.
    :param ports: COM1 to COM<ports>, the same lines on each that is there.
    :param button: the power button switches it off.
    :param full: 15 MiB of its memory are not zero: a live migration carries
        them, and takes long where it may use little bandwidth.
    :raises ValueError: the text does not fit, or a number is out of range.
    """
    if not 1 <= ports <= len(_PORTS):
        raise ValueError(f'ports: {ports}')
    if not 1 <= burst <= 255:
        raise ValueError(f'burst: {burst}')
    if b'\0' in text:
        raise ValueError('text: NUL is its end')
    ticks = max(1, round(interval / TICK)) if interval else 0
    target = b'%08d' % (0 if count is None else count)
    code = _Code()
    add, jump, place = code.add, code.jump, code.place

    add(0xfa)                               # cli
    add(0xfc)                               # cld
    add(0x31, 0xc0)                         # xor ax, ax
    add(0x8e, 0xd8)                         # mov ds, ax
    add(0x8e, 0xc0)                         # mov es, ax
    add(0x8e, 0xd0)                         # mov ss, ax
    add(0xbc, _word(_ORIGIN))               # mov sp, origin
    add(0xfb)                               # sti

    # Each port: 8N1, no interrupts; then the text. The FIFO stays off: to
    # switch it on drops what was typed before.
    add(0xbb, 'ports')                      # mov bx, ports
    place('set up')
    for register, value in ((1, 0), (3, 3), (4, 3)):
        add(0x8b, 0x17)                     # mov dx, [bx]
        add(0x83, 0xc2, register)           # add dx, register
        add(0xb0, value)                    # mov al, value
        add(0xee)                           # out dx, al
    add(0xbe, 'text')                       # mov si, text
    jump(_CALL, 'write')
    add(0x83, 0xc3, 0x04)                   # add bx, 4
    add(0x81, 0xfb, 'ports end')            # cmp bx, ports end
    jump(_JB, 'set up')

    if full:
        # The BIOS copies itself to each 64 KiB from 1 MiB to 16 MiB.
        place('fill')
        add(0xbe, 'descriptors')            # mov si, descriptors
        add(0xb9, _word(0x8000))            # mov cx, 0x8000
        add(0xb4, 0x87)                     # mov ah, 0x87
        add(0xcd, 0x15)                     # int 0x15
        add(0xfe, 0x06, 'destination')      # inc byte [destination]
        jump(_JNE, 'fill')

    if button:
        add(0xba, _word(_PM1_ENABLE))       # mov dx, enable
        add(0xb8, _word(_BUTTON))           # mov ax, button
        add(0xef)                           # out dx, ax

    place('burst')
    add(0xb5, burst)                        # mov ch, burst
    place('line')
    # The last line written?
    add(0xbe, 'digits')                     # mov si, digits
    add(0xbf, 'target')                     # mov di, target
    add(0x51)                               # push cx
    add(0xb9, _word(8))                     # mov cx, 8
    add(0xf3, 0xa6)                         # repe cmpsb
    add(0x59)                               # pop cx
    jump(_JE, 'typed')
    # Count in decimal digits.
    add(0xbf, 'last digit')                 # mov di, last digit
    place('count')
    add(0xfe, 0x05)                         # inc byte [di]
    add(0x80, 0x3d, ord('9'))               # cmp byte [di], '9'
    add(0x76, 8 - 2)                        # jbe past the next three
    add(0xc6, 0x05, ord('0'))               # mov byte [di], '0'
    add(0x4f)                               # dec di
    jump(_JMP, 'count')
    add(0xbb, 'ports')                      # mov bx, ports
    place('each port')
    add(0xbe, 'text of line')               # mov si, text of line
    jump(_CALL, 'write')
    add(0x83, 0xc3, 0x04)                   # add bx, 4
    add(0x81, 0xfb, 'ports end')            # cmp bx, ports end
    jump(_JB, 'each port')
    add(0xfe, 0xcd)                         # dec ch
    jump(_JNE, 'line')

    place('typed')
    if button:
        add(0xba, _word(_PM1_STATUS))       # mov dx, status
        add(0xed)                           # in ax, dx
        add(0xa9, _word(_BUTTON))           # test ax, button
        jump(_JE, 'not pressed')
        add(0xba, _word(_PM1_CONTROL))      # mov dx, control
        add(0xb8, _word(_OFF))              # mov ax, off
        add(0xef)                           # out dx, ax
        place('not pressed')
    add(0x31, 0xed)                         # xor bp, bp: nothing was typed
    place('look')
    add(0xbb, 'ports')                      # mov bx, ports
    place('receive')
    add(0x8b, 0x17)                         # mov dx, [bx]
    add(0x83, 0xc2, 0x05)                   # add dx, 5: line status
    add(0xec)                               # in al, dx
    add(0x3c, 0xff)                         # cmp al, 0xff: no such port
    jump(_JE, 'next port')
    add(0xa8, 0x01)                         # test al, data ready
    jump(_JE, 'next port')
    add(0xbd, _word(_PATIENCE))             # mov bp, patience
    add(0x8b, 0x17)                         # mov dx, [bx]
    add(0xec)                               # in al, dx
    add(0x3c, 10)                           # cmp al, line feed
    add(0x75, 2)                            # jne past the next
    add(0xb0, 13)                           # mov al, carriage return
    add(0x8b, 0x7f, 0x02)                   # mov di, [bx + 2]: the buffer
    add(0xaa)                               # stosb
    add(0x89, 0x7f, 0x02)                   # mov [bx + 2], di
    add(0x3c, 13)                           # cmp al, carriage return
    jump(_JNE, 'next port')
    add(0xb8, 10, 0)                        # mov ax, line feed and NUL
    add(0xab)                               # stosw
    add(0x8b, 0x77, 0x02)                   # mov si, [bx + 2]
    add(0x81, 0xe6, _word(0xff00))          # and si, 0xff00: its beginning
    add(0x89, 0x77, 0x02)                   # mov [bx + 2], si
    jump(_CALL, 'write')
    place('next port')
    add(0x83, 0xc3, 0x04)                   # add bx, 4
    add(0x81, 0xfb, 'ports end')            # cmp bx, ports end
    jump(_JB, 'receive')
    add(0x4d)                               # dec bp
    jump(_JNS, 'look')

    # All lines written: sleep to the next tick. Else keep the pace.
    add(0xbe, 'digits')                     # mov si, digits
    add(0xbf, 'target')                     # mov di, target
    add(0xb9, _word(8))                     # mov cx, 8
    add(0xf3, 0xa6)                         # repe cmpsb
    jump(_JE, 'sleep')
    if ticks:
        add(0xa1, _word(_BIOS_TICKS))       # mov ax, [ticks]
        add(0x89, 0xc2)                     # mov dx, ax
        add(0x2b, 0x06, _word(_LAST_TICK))  # sub ax, [last tick]
        add(0x3d, _word(ticks))             # cmp ax, interval
        jump(_JB, 'sleep')
        add(0x89, 0x16, _word(_LAST_TICK))  # mov [last tick], dx
    jump(_JMP_NEAR, 'burst')
    place('sleep')
    add(0xf4)                               # hlt
    jump(_JMP, 'typed')

    # Write the text at si on the port at bx.
    place('write')
    add(0x8b, 0x17)                         # mov dx, [bx]
    place('next character')
    add(0xac)                               # lodsb
    add(0x84, 0xc0)                         # test al, al
    add(0x75, 1)                            # jne past the next
    add(0xc3)                               # ret
    add(0x88, 0xc4)                         # mov ah, al
    add(0x83, 0xc2, 0x05)                   # add dx, 5: line status
    place('not empty')
    add(0xec)                               # in al, dx
    add(0xa8, 0x20)                         # test al, transmitter empty
    jump(_JE, 'not empty')
    add(0x83, 0xea, 0x05)                   # sub dx, 5
    add(0x88, 0xe0)                         # mov al, ah
    add(0xee)                               # out dx, al
    jump(_JMP, 'next character')

    place('ports')
    for index in range(ports):
        add(_word(_PORTS[index]), _word(_BUFFERS + 0x100 * index))
    place('ports end')
    if full:
        place('descriptors')
        add(bytes(16))
        add(_word(0xffff), 0, 0, 0x0f, 0x93, 0, 0)
        add(_word(0xffff), 0, 0)
        place('destination')
        add(0x10, 0x93, 0, 0)
        add(bytes(16))
    place('target')
    add(b'--------' if count is None else target)
    place('text of line')
    add(b'line ')
    place('digits')
    add(b'0000000')
    place('last digit')
    add(b'0\r\n\0')
    place('text')
    add(text, 0)

    assembled = code.assemble()
    if len(assembled) > _PARTITIONS:
        raise ValueError(f'text: {len(assembled) - _PARTITIONS} bytes too '
                         'long for a boot sector')
    # A partition table with one entry: nova takes an image without one for a
    # filesystem, and refuses it.
    partition = bytes([0x80, 0, 1, 0, 0x0c, 0, 1, 0])
    partition += (1).to_bytes(4, 'little')
    partition += (_IMAGE // _SECTOR - 1).to_bytes(4, 'little')
    return (assembled.ljust(_PARTITIONS, b'\0') + partition
            + bytes(48) + b'\x55\xaa')


def disk_image(sector: bytes) -> bytes:
    """A raw disk image of 1 MiB that boots this sector."""
    return sector.ljust(_IMAGE, b'\0')


def lines(first: int, last: int) -> bytes:
    """What the guest writes from one line to another, both included."""
    return b''.join(b'line %08d\r\n' % n for n in range(first, last + 1))


def free_port(address: str = '127.0.0.1') -> int:
    """A TCP port that nobody listens on at the moment."""
    return free_ports(1, address)[0]


def free_ports(count: int, address: str = '127.0.0.1') -> list[int]:
    """As many, each another one; one by one, two might be the same."""
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    with contextlib.ExitStack() as bound:
        listeners = [bound.enter_context(socket.socket(family))
                     for _ in range(count)]
        for listener in listeners:
            listener.bind((address, 0))
        return [listener.getsockname()[1] for listener in listeners]


# Devices of a domain. libvirt gives out the numbers of serial ports.

def _log(log: str | os.PathLike[str] | None, append: str | None
         ) -> list[etree._Element]:
    if log is None:
        return []
    attributes = {'file': os.fspath(log)}
    if append is not None:
        attributes['append'] = append
    return [E.log(attributes)]


def tcp_serial(port: int, log: str | os.PathLike[str] | None = None,
               append: str | None = 'on',
               address: str = '127.0.0.1') -> etree._Element:
    """A serial port that listens on TCP, with a log if a path is given."""
    return E.serial(
        E.source(mode='bind', host=address, service=str(port)),
        E.protocol(type='raw'), *_log(log, append), type='tcp')


def pty_serial(log: str | os.PathLike[str] | None = None,
               append: str | None = 'on') -> etree._Element:
    """A serial port on a pseudo terminal, with a log if a path is given."""
    return E.serial(*_log(log, append), type='pty')


def file_serial(path: str | os.PathLike[str],
                append: str | None = 'on') -> etree._Element:
    """A serial port that writes into a file."""
    attributes = {'path': os.fspath(path)}
    if append is not None:
        attributes['append'] = append
    return E.serial(E.source(attributes), type='file')


def domain_xml(directory: str | os.PathLike[str], sector: bytes,
               serials: Sequence[etree._Element],
               name: str = 'guest1', uuid: str | None = None,
               memory: int = 16) -> str:
    """A domain in software emulation that boots ``sector``.

    :param directory: where its disk image is written, as ``<name>.img``.
    :param serials: its serial ports, in order.
    :param memory: MiB.
    """
    image = Path(directory) / f'{name}.img'
    image.write_bytes(disk_image(sector))
    domain = E.domain(
        E.name(name),
        E.memory(str(memory), unit='MiB'),
        E.vcpu('1'),
        E.os(E.type('hvm', arch='x86_64', machine='pc'), E.boot(dev='hd')),
        E.features(E.acpi()),
        E.on_reboot('restart'),
        E.on_crash('destroy'),
        E.devices(
            E.disk(
                E.driver(name='qemu', type='raw'),
                E.source(file=str(image)),
                E.target(dev='hda', bus='ide'),
                E.shareable(),
                type='file', device='disk'),
            E.controller(type='usb', model='none'),
            E.memballoon(model='none'),
            *serials),
        type='qemu')
    if uuid is not None:
        domain.insert(1, E.uuid(uuid))
    return etree.tostring(domain, encoding='unicode', pretty_print=True)
