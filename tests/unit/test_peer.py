# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import socket

from virtlogd_driver import peer


def test_who_listens(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / 'socket')
    with (socket.socket(socket.AF_UNIX) as listening,
          socket.socket(socket.AF_UNIX) as channel):
        listening.bind(path)
        listening.listen()
        channel.connect(path)
        assert peer.credentials(channel) == (
            os.getpid(), os.geteuid())
