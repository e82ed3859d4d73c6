"""How an item is written: pictures or texts, the numbers in them, and one JSON file with all that reports show."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Canvas
from PIL import Image

from unlocked.items import latex, style
from unlocked.items.context import Context
from unlocked.items.table import Table

DOTS = 200  # per inch, of the PNG
SCREEN = 120  # CSS pixels per inch of a figure
METADATA: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "png": {}, "svg": {"Date": None}}


@dataclass(frozen=True)
class Figure:
    """A drawn figure and its plotted numbers, one row per point."""

    canvas: Canvas
    numbers: pd.DataFrame


def atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file under another name and rename it when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    write(temporary)
    os.replace(temporary, path)
    return path


def save(item: Figure | Table, stem: Path, context: Context) -> list[Path]:
    """Write all files of an item; returns their paths.

    A figure: `<stem>.{pdf,png,svg,csv,json}`. A table: `<stem>.{md,tex,csv,json}`.
    """
    about = {key: getattr(context, key) for key in ("name", "title", "caption", "footer", "facts")}
    about |= pictures(item, stem, context) if isinstance(item, Figure) else texts(item, stem, context)
    write_text(stem.with_suffix(".json"), json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    atomically(stem.with_suffix(".csv"), partial(item.numbers.to_csv, index=False, float_format="%.6g"))
    return sorted(stem.parent.glob(f"{stem.name}.*"))


def write_text(path: Path, text: str) -> Path:
    """A text, atomically."""
    return atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def pictures(item: Figure, stem: Path, context: Context) -> dict[str, Any]:
    """Write them; returns their size on a screen, in CSS pixels."""
    style.footer(item.canvas, context.footer)
    for kind, metadata in METADATA.items():
        draw = partial(item.canvas.savefig, format=kind, metadata=metadata, bbox_inches="tight", dpi=DOTS)
        atomically(stem.with_suffix(f".{kind}"), draw)
    with Image.open(stem.with_suffix(".png")) as image:
        width, height = (round(dots * SCREEN / DOTS) for dots in image.size)
    return {"kind": "figure", "picture": {"width": width, "height": height}}


def texts(item: Table, stem: Path, context: Context) -> dict[str, Any]:
    """Write them, readable alone; returns the table as plain values."""
    title, caption, footer = context.title, context.caption, context.footer
    write_text(stem.with_suffix(".md"), f"**{title}.** {caption}\n\n{item.markdown()}\n\n*{footer}*\n")
    body = latex.render(item, f"{context.unnumbered}. {caption}", context.name)
    write_text(stem.with_suffix(".tex"), f"% needs {latex.PREAMBLE}\n% {footer}\n{body}")
    return {"kind": "table", "table": item.to_json()}
