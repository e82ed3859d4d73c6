"""What is said to the person at the terminal: one line each, also in a job's log."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print one line that names the program, at once, on stderr."""
    print(f"unlocked: {text}", file=sys.stderr, flush=True)
