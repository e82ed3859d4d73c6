"""The items of a call are drawn by forks of one process, which has read the plan and imported what drawing takes.

To start anew for every item would take as long as to draw it. The call of the workflow listens; with the first item
that is ready it starts that process, which ends with the call. An item's job says there what it wants, lends its
outputs, and waits. What cannot be reached there is drawn in the job itself, as `unlocked item` does without a workflow.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import pkgutil
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # an item's job imports nothing that takes long
    from unlocked.artifact.plan import Plan

ADDRESS = "UNLOCKED_ITEMS"  # in the environment of the jobs: the Python of the call, and its socket
Draw = Callable[[list[str]], int]  # names of items -> exit code


def listen(command: Sequence[str]) -> None:
    """Let the jobs of this call find the process that `command` starts, with the socket's descriptor added to it."""
    if not hasattr(os, "fork"):
        return
    folder = tempfile.TemporaryDirectory(prefix="unlocked-")  # which no one else may enter
    atexit.register(folder.cleanup)
    listener, path = socket.socket(socket.AF_UNIX), f"{folder.name}/items"
    with suppress(OSError):  # a name too long, a file system without sockets: then every job draws its own
        listener.bind(path)
        listener.listen(1000)
        os.environ[ADDRESS] = f"{sys.prefix}{os.pathsep}{path}"
        threading.Thread(target=start, args=(listener, command), daemon=True, name="items").start()


def start(listener: socket.socket, command: Sequence[str]) -> None:
    """Start the process when somebody asks. It ends when its input does, however the call ends."""
    with listener:  # then its own alone: if it dies, those who wait learn it
        select.select([listener], [], [])
        number, own = listener.fileno(), os.environ | {"OMP_NUM_THREADS": "1"}  # what has threads does not fork well
        process = subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, env=own, pass_fds=[number])
    atexit.register(process.communicate)


def ask(names: Sequence[str]) -> int | None:
    """Have items drawn there: the exit code, None where nobody answers."""
    prefix, _, path = os.environ.get(ADDRESS, "").rpartition(os.pathsep)
    if prefix == sys.prefix:  # the environment of a rule may be another
        with suppress(OSError), socket.socket(socket.AF_UNIX) as line:
            line.connect(path)
            socket.send_fds(line, [" ".join(names).encode()], [1, 2])
            if code := line.recv(1):
                return code[0]
    return None


def serve(number: int, plan: Plan, draw: Draw) -> int:
    """Fork for everyone who asks on a listening socket, a descriptor, until stdin ends; returns 0."""
    prepare(plan)
    with socket.socket(fileno=number) as listener:
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            line, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                answer(line, draw)
            line.close()
            with suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
    return 0


def prepare(plan: Plan) -> None:
    """Import what draws the plan's items, and draw something: fonts and the writers of all formats are loaded then."""
    from matplotlib.figure import Figure

    from unlocked.items.output import METADATA

    for item in plan.items.values():
        pkgutil.resolve_name(item.config.build)
    figure = Figure()
    figure.subplots().set_title("$x_1$")
    for kind in METADATA:
        figure.savefig(io.BytesIO(), format=kind)
    gc.freeze()


def answer(line: socket.socket, draw: Draw) -> None:
    """Draw what somebody asks for, with their outputs, and end this process."""
    try:
        names, outputs, *_ = socket.recv_fds(line, 2**16, 2)
        for own, given in zip((1, 2), outputs, strict=True):
            os.dup2(given, own)
        code = draw(names.decode().split())
        sys.stdout.flush()
        line.sendall(bytes([code]))
    finally:
        os._exit(0)
