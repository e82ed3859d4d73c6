"""Durations, sizes and small numbers as a person writes them. Used by every command that prints; imports nothing."""

from __future__ import annotations


def human_time(seconds: float) -> str:
    """`35 s`, `12 min`, `3.4 h`, `12 d`."""
    for limit, divisor, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            value = seconds / divisor
            return f"{value:.0f} {unit}" if value >= 10 or unit == "s" else f"{value:.1f} {unit}"
    return f"{seconds / 86400:.0f} d"


def human_bytes(count: float) -> str:
    """`812 B`, `36 kB`, `4.1 MB`, `12 GB`, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.0f} GB" if count >= 10 else f"{count:.1f} GB"


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
