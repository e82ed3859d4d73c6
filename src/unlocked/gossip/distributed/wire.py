"""Messages between processes, over sockets whose both ends know a key: plain data, never code.

A message is a word and values: JSON, in which arrays are placeholders for bytes that follow. Sizes stand in front and
are bounded, so that who sends nonsense ends a connection and nothing else. Nothing but challenges of fixed length is
read from an end that has not proved that it knows the key. Nothing is encrypted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import secrets
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from unlocked.errors import SettingError

GONE = (EOFError, OSError)  # what sending and receiving raise when the other end is not there any more
KEY = "UNLOCKED_KEY"  # the environment's variable
KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds, seconds, unanswered probes
PROOF_SECONDS = 10.0
NONCE = DIGEST = 32
SIZES = struct.Struct("<IQ")  # of the JSON, of the bytes that follow
TEXT_MOST, BYTES_MOST = 2**24, 2**38


class Stranger(EOFError):
    """The other end does not know the key, or is no program of this kind."""


def exactly(sock: socket.socket, into: memoryview) -> None:
    """Fill a buffer from a socket."""
    while into:
        if not (count := sock.recv_into(into)):
            raise EOFError("the other end is gone")
        into = into[count:]


def read(sock: socket.socket, size: int) -> bytes:
    """That many bytes."""
    data = bytearray(size)
    exactly(sock, memoryview(data))
    return bytes(data)


def prove(sock: socket.socket, key: bytes, server: bool, seconds: float | None = PROOF_SECONDS) -> None:
    """Both ends show that they know the key without saying it; `Stranger` if the other one does not, or not in time."""
    sock.settimeout(seconds)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that is gone says no goodbye
        for option, value in KEEP_ALIVE.items():
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    mine = secrets.token_bytes(NONCE)
    sock.sendall(mine)
    theirs = read(sock, NONCE)
    asked, answered = (theirs, mine) if server else (mine, theirs)
    proofs = [hmac.digest(key, side + asked + answered, hashlib.sha256) for side in (b"server", b"client")]
    sock.sendall(proofs[not server])
    if not hmac.compare_digest(read(sock, DIGEST), proofs[server]):
        raise Stranger("the other end does not know the key")
    sock.settimeout(None)


def introduced(
    sock: socket.socket, key: bytes, *mine: Any, server: bool, seconds: float | None = PROOF_SECONDS
) -> tuple[Channel, list[Any]]:
    """A channel to the other end and what it says of itself, once both know who they are and that they know the key.

    The socket is closed, and one of `GONE` raised, where the other end does not know the key or is not there any more.
    """
    try:
        prove(sock, key, server, seconds)
        channel = Channel(sock)
        channel.send("here", *mine)
        return channel, channel.receive()[1:]
    except GONE:
        sock.close()
        raise


def start_thread(task: Callable[..., object], *arguments: Any) -> threading.Thread:
    """A thread that does not outlive the process."""
    thread = threading.Thread(target=task, args=arguments, daemon=True)
    thread.start()
    return thread


def admit(listener: socket.socket, welcome: Callable[[socket.socket], None]) -> None:
    """Let in whoever comes, until the listener is closed: who has nothing to say keeps nobody else waiting."""
    while listener.fileno() >= 0:
        with contextlib.suppress(OSError):
            start_thread(welcome, listener.accept()[0])


def shared_key(other: bytes = b"") -> bytes:
    """The key of all processes of a training: from `UNLOCKED_KEY` where it is set, else from `other`.

    Without either: from a file in the home that only the user can read, made at need.
    """
    secret = os.environ.get(KEY, "").encode() or other or key_file(Path.home() / ".unlocked_key")
    return hashlib.sha256(secret).digest()


def key_file(path: Path) -> bytes:
    """What stands in a file of random bytes that only the user can read; `SettingError` if others can."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            os.link(new, path)  # whole, or not at all: whoever comes first
        about, secret = path.stat(), path.read_bytes()
    except OSError as error:
        raise SettingError(KEY, None, f"must hold a secret, as {path} cannot be used ({error.strerror})") from None
    finally:
        new.unlink(missing_ok=True)
    if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077 or len(secret) < 32:
        raise SettingError(KEY, None, f"must hold a secret, or {path} be the user's alone: chmod 600 {path}")
    return secret


class Channel:
    """One end of a connection: `send` from any thread, `receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self._sending = sock, threading.Lock()

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, word: str, *values: Any) -> None:
        """Send one message, whole: plain values, dataclasses (which arrive as dicts), arrays and tensors on the CPU."""
        arrays: list[np.ndarray] = []

        def plain(value: Any) -> Any:
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            array = np.asarray(value)
            if array.dtype.hasobject:
                raise TypeError(f"no plain value: {value!r}")
            arrays.append(np.ascontiguousarray(array))
            return {"array": [array.dtype.str, array.shape]}

        text = json.dumps([word, *values], default=plain).encode()
        size = sum(array.nbytes for array in arrays)
        with self._sending:
            self.sock.sendall(SIZES.pack(len(text), size) + text)
            for array in arrays:
                self.sock.sendall(array.reshape(-1).view(np.uint8).data if array.size else b"")

    def receive(self) -> Any:
        """The next message, [word, *values]; blocks until it is there."""
        length, size = SIZES.unpack(read(self.sock, SIZES.size))
        if length > TEXT_MOST or size > BYTES_MOST:
            raise Stranger("a message is larger than any")
        text, data = read(self.sock, length), memoryview(bytearray(size))
        exactly(self.sock, data)

        def arrays(found: dict[str, Any]) -> Any:
            """In the place of a type and a shape the array of them that comes next in the data."""
            nonlocal data
            if found.keys() != {"array"}:
                return found
            kind, shape = np.dtype(found["array"][0]), tuple(found["array"][1])
            if kind.hasobject:
                raise ValueError("an array of objects")
            size = kind.itemsize * int(np.prod(shape, dtype=np.int64))
            taken, data = data[:size], data[size:]
            return np.frombuffer(taken, kind).reshape(shape)

        try:
            return json.loads(text, object_hook=arrays)
        except (ValueError, TypeError) as error:
            raise Stranger("a message is none") from error

    def hang_up(self) -> None:
        """End the connection for both ends; whoever is blocked in `receive`, here or there, gets `EOFError`."""
        with contextlib.suppress(OSError):  # it has ended already
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Free this end; only for the thread that receives."""
        self.sock.close()
