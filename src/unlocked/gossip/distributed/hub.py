"""The middle of a star of connections: who is there, who is lost, what is said to whom.

Every member has one connection, served by a thread; a connection that ends is a member that is lost.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from unlocked.gossip.distributed.wire import GONE, Channel


class Hub:
    """`answers`: what is done, under the lock, when a member says a word; each gets its rank and the values."""

    def __init__(self) -> None:
        self.changed = threading.Condition()  # guards everything here
        self.channels: dict[int, Channel] = {}
        self.here: set[int] = set()
        self.heard: dict[int, float] = {}  # when a member last said something
        self.answers: dict[str, Callable[..., None]] = {}

    def join(self, rank: int, channel: Channel) -> None:
        """A member has come."""
        with self.changed:
            self.channels[rank] = channel
            self.here.add(rank)
            self.heard[rank] = time.monotonic()
            self.changed.notify_all()

    def serve(self, rank: int) -> None:
        """Hear a member until its connection ends."""
        channel = self.channels[rank]
        with contextlib.suppress(*GONE):
            while True:
                word, *values = channel.receive()
                if word not in self.answers:
                    break
                with self.changed:
                    self.heard[rank] = time.monotonic()
                    if rank in self.here:
                        self.answers[word](rank, *values)
        with self.changed:
            self.lose(rank, "lost its connection")
            channel.close()
            self.changed.notify_all()

    def say(self, rank: int, *message: Any) -> None:
        """Send, if the member is still there; its own thread notices if it is not."""
        with contextlib.suppress(*GONE):
            self.channels[rank].send(*message)

    def lose(self, rank: int, reason: str) -> None:
        """Go on without a member; nothing happens the second time. Under the lock."""
        if rank in self.here:
            self.here.remove(rank)
            self.lost(rank, reason)

    def lost(self, rank: int, reason: str) -> None:
        """A member is not here any more. Under the lock."""
        raise NotImplementedError
