# SPDX-License-Identifier: Apache-2.0
"""All errors of this project have one base class.

Each message names the option or the file that is at fault and the remedy.
The driver turns them into nova's own at one place (nova_edge.py).
"""


class VirtlogdDriverError(Exception):
    """Base of all errors that this project raises on purpose."""


class InvalidOption(VirtlogdDriverError):
    """A configuration value that cannot be used."""

    def __init__(self, option: str, value: object, allowed: str) -> None:
        super().__init__(
            f'Option {option} = {value!r} is not valid: {allowed}.')


class UnsupportedNova(VirtlogdDriverError):
    """A nova that this driver does not work with."""

    def __init__(self, version: str, reason: str) -> None:
        """:param reason: what goes on after "nova VERSION", and a remedy"""
        super().__init__(
            f'nova {version} {reason}, or set compute_driver = '
            'libvirt.LibvirtDriver.')


class HostError(VirtlogdDriverError):
    """libvirt could not be asked. Says nothing of what the host can do."""


class GuestNotFound(VirtlogdDriverError):
    """No such guest on this host (any more)."""


class AmbiguousGuest(GuestNotFound):
    """The beginning of several guests' names."""


class InvalidGuestXML(VirtlogdDriverError):
    """A domain XML that cannot be understood."""


class TooManySerialPorts(VirtlogdDriverError):
    """More serial ports asked for than the machine has."""


class PortRangeExhausted(VirtlogdDriverError):
    """No TCP port of the configured range is free."""


class InvalidAddress(VirtlogdDriverError):
    """A host address that does not resolve or is not one of this host."""


class LogError(VirtlogdDriverError):
    """A console log that cannot be read."""


class LogNotFound(LogError):
    """The log file, or its directory, is not there."""


class LogRefused(LogError):
    """The log may not be read: permission, or a path that is not allowed."""


class LogNotRegular(LogError):
    """The log is a symbolic link, a FIFO, a device, a directory, a socket."""


class LogDamaged(LogError):
    """The file system does not give a file of the log (EIO, ESTALE)."""


class InvalidPosition(LogError):
    """A text that is no position in a console log."""


class DiskStalled(VirtlogdDriverError):
    """A file system that does not answer."""


class VirtlogdError(VirtlogdDriverError):
    """virtlogd did not do what it was asked."""


class VirtlogdDown(VirtlogdError):
    """Nothing listens on virtlogd's socket."""


class VirtlogdHung(VirtlogdError):
    """virtlogd accepted a call and did not answer in time."""


class LogDiskFull(VirtlogdError):
    """No room for a console log: virtlogd would close it for good."""


class LogNotBegun(VirtlogdError):
    """The first file of a console log cannot be made."""


class ReattachFailed(VirtlogdError):
    """A dead log could not be brought back.

    The guest is as it was, unless the message says that its interactive
    console is gone.
    """


class InvalidConfFile(VirtlogdDriverError):
    """A libvirt configuration file that libvirt itself would refuse."""

    def __init__(self, path: str, line: int, expected: str) -> None:
        # As privsep carries it: it is made anew out of these.
        super().__init__(path, line, expected)

    def __str__(self) -> str:
        path, line, expected = self.args
        place = f'{path}:{line}' if line else path
        return (
            f'{place}: {expected}. libvirt refuses the whole file. Correct '
            'it, and start the daemon that reads it; reload virtlogd if it '
            'runs.')


class InvalidState(VirtlogdDriverError):
    """A state file of a stream that cannot be used."""

    #: What to do about one that is none.
    MOVE = ('Move it away: the stream then begins with what guests write from '
            'now on.')
    #: And about one that cannot be read or written: what was not given yet
    #: would be lost without it.
    MEND = ('See to its directory, which has to be there and writable, and to '
            'the file system. Leave what is there: the stream goes on where '
            'that says.')

    def __init__(self, path: str, reason: str, remedy: str = MOVE) -> None:
        super().__init__(
            f'The state file {path} cannot be used: {reason}. {remedy}')
