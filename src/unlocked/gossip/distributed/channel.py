"""Messages between two processes, over a pipe or over a TCP connection whose both ends know a key.

Messages are pickled by value: nothing of them lives in shared memory. Nothing that comes over TCP is unpickled before
both ends have proved that they know the key.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

GONE = (EOFError, OSError)  # what sending and receiving raise when the other end is not there any more
KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds, seconds, unanswered probes


class Channel:
    """One end of a connection: `send` from any thread, `receive` from one."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._sending = connection, threading.Lock()

    def send(self, message: Any) -> None:
        """Send one message, whole."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._sending:
            self._connection.send_bytes(data)

    def receive(self) -> Any:
        """The next message; blocks until it is there."""
        return pickle.loads(self._connection.recv_bytes())

    def hang_up(self) -> None:
        """End the connection for both ends; whoever is blocked in `receive`, here or there, gets `EOFError`."""
        try:
            with socket.socket(fileno=os.dup(self._connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def close(self) -> None:
        """Free this end; only for the thread that receives."""
        self._connection.close()


def proven(sock: socket.socket, key: bytes, server: bool) -> Connection:
    """A connection whose other end has proved that it knows the key; `AuthenticationError` if it has not."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that is gone says no goodbye
    for option, value in KEEP_ALIVE.items():
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    connection = Connection(sock.detach())
    steps = (deliver_challenge, answer_challenge) if server else (answer_challenge, deliver_challenge)
    for step in steps:
        step(connection, key)
    return connection
