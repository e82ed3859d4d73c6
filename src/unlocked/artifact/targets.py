"""What the workflow can be asked for, read from its files: so that a wrong name is answered before anything else.

Needs nothing but Python, and is imported by `reproduce.py` before there is an environment.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

RULE = re.compile(r"^rule (\w+):", re.MULTILINE)
ENTRY = re.compile(r"^(\w+):", re.MULTILINE)  # of a YAML file
FLAGS = {"-n", "--dry-run", "-f", "--force", "-F", "--forceall", "-p", "-k"}  # of Snakemake's options, without value
INNER = {"data", "train", "train_processes", "runs"}  # rules that others ask for


def known(root: Path) -> list[str]:
    """The names of everything that can be built: groups and rules first, then items."""
    files = sorted((root / "configs").glob("*/items.yaml"))
    rules = [root / "Snakefile", *sorted((root / "workflow" / "rules").glob("*.smk"))]
    named = [name for path in rules for name in RULE.findall(path.read_text()) if name not in INNER]
    items = [f"{path.parent.name}_{key}" for path in files for key in ENTRY.findall(path.read_text())]
    return [*named, *(path.parent.name for path in files), *items]


def asked_for(words: Sequence[str], prefixes: Iterable[str]) -> Iterator[str]:
    """The names of targets among the words of a command line: the first words, and others that begin like an item."""
    first, begin = True, tuple(f"{prefix}_" for prefix in prefixes)
    words = [word for word in words if word not in FLAGS]
    for before, word in zip(["", *words], words, strict=False):
        named = re.fullmatch(r"\w+", word) is not None
        first = first and named
        if first or (named and word.startswith(begin) and not before.startswith("-")):
            yield word


def unknown(words: Sequence[str], root: Path) -> str | None:
    """One line on the first name that there is not, with the nearest ones and all; None if there is none."""
    names = known(root)
    groups = [path.parent.name for path in (root / "configs").glob("*/items.yaml")]
    for word in asked_for(words, groups):
        if word not in names and word not in INNER:
            nearest = difflib.get_close_matches(word, names, n=3, cutoff=0.3)
            meant = f"did you mean {', '.join(nearest)}? " if nearest else ""
            return f"there is no target {word!r}: {meant}All: {', '.join(names)}"
    return None
