"""What an item's function returns, and how it is written: figures and tables with the numbers in them.

Second to last on the road: records in, files out. No trainer and no torch here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Canvas
from omegaconf import OmegaConf

from unlocked.items import style
from unlocked.record import Record
from unlocked.vision.catalogue import DATASETS

DATA_NAMES = {
    "digits": "scikit-learn digits",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet32": "ImageNet32",
    "imagenet": "ImageNet",
}
assert set(DATA_NAMES) == set(DATASETS)


@dataclass(frozen=True)
class Context:
    """What an item's function gets to know."""

    paper: str
    id: str
    scale: str
    title: str
    caption: str
    records: list[Record]
    settings: dict[str, Any]  # the scale's values for the paper, and its seeds
    claims: Mapping[str, Any] = field(default_factory=dict)  # of the plan, for the items that judge them

    def select(self, **settings: Any) -> list[Record]:
        """Records whose settings (dots as double underscores) have these values, ordered by seed."""
        wanted = {key.replace("__", "."): value for key, value in settings.items()}
        found = [r for r in self.records if all(OmegaConf.select(r.config, k) == v for k, v in wanted.items())]
        return sorted(found, key=lambda r: r.config.seed)


@dataclass(frozen=True)
class Figure:
    """A drawn figure and its plotted numbers, one row per point."""

    canvas: Canvas
    numbers: pd.DataFrame


@dataclass(frozen=True)
class Table:
    """A table as printed (strings; the index is the first column) and its numbers, one row per cell."""

    printed: pd.DataFrame
    numbers: pd.DataFrame
    notes: Sequence[str] = field(default_factory=tuple)
    columns: str | None = None  # LaTeX column specification, the index first; None: all left-aligned


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    series = pd.Series(list(values), dtype=float)
    return float(series.mean()), float(series.std(ddof=1)) if len(series) > 1 else 0.0


def percent(values: Sequence[float]) -> str:
    """`97.2 ± 0.3`: mean and deviation over seeds of a share, in percent."""
    if not values:
        return "–"
    mean, deviation = spread(values)
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}" if len(values) > 1 else f"{100 * mean:.1f}"


def mean_curve(records: Sequence[Record], metric: str, x: str = "epoch") -> pd.DataFrame:
    """A metric over time, averaged over runs: columns x, mean, low, high (the range over the seeds)."""
    rows = pd.concat([r.series(metric) for r in records]) if records else pd.DataFrame(columns=["step", x, "value"])
    grouped = rows.groupby("step")
    return pd.DataFrame(
        {
            x: grouped[x].mean(),
            "mean": grouped["value"].mean(),
            "low": grouped["value"].min(),
            "high": grouped["value"].max(),
            "runs": grouped["value"].count(),
        }
    ).reset_index()


def provenance(records: Sequence[Record], scale: str) -> str:
    """One line for the footer: scale, data, seeds, commit, hardware."""
    if not records:
        return f"scale {scale} · computed without training"
    data = sorted({DATA_NAMES.get(r.config.data.name, "no data set") for r in records})
    seeds = sorted({int(r.config.seed) for r in records})
    diverged = sum(r.diverged for r in records)
    commits = sorted({(r.summary["provenance"]["commit"] or "unknown")[:8] for r in records})
    dirty = " (modified)" if any(r.summary["provenance"]["dirty"] for r in records) else ""
    return (
        f"scale {scale} · {', '.join(data)} · {len(seeds)} seed{'s' * (len(seeds) > 1)} · "
        f"{len(records)} runs{f' ({diverged} diverged)' * (diverged > 0)} · commit {', '.join(commits[:3])}{dirty}"
    )


def atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name and rename it when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    write(temporary)
    os.replace(temporary, path)


def markdown(table: Table, title: str, caption: str, footer: str) -> str:
    """The table with title, caption, notes and footer, for reading."""
    body = table.printed.to_markdown(disable_numparse=True)
    notes = "".join(f"\n\n{note}" for note in table.notes)
    return f"**{title}.** {caption}\n\n{body}{notes}\n\n*{footer}*\n"


LATEX_ESCAPES = {
    "±": r"$\pm$", "²": r"\textsuperscript{2}", "χ₁": r"$\chi_1$", "χ₂": r"$\chi_2$", "√": r"$\surd$", "–": "--",
    "×": r"$\times$", "ő": r"\H{o}", "é": r"\'e", "≥": r"$\geq$", "·": r"$\cdot$", "−": "$-$", "…": r"\ldots{}",
    "<": "$<$", ">": "$>$", "χ": r"$\chi$", "ε": r"$\varepsilon$", "μ": r"$\mu$", "σ": r"$\sigma$", "ζ": r"$\zeta$",
    "∇": r"$\nabla$",
}  # fmt: skip


def latex_text(value: object) -> str:
    """A cell, a header or a caption for LaTeX: specials escaped, symbols as commands."""
    text = "".join(
        {"%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "#": r"\#", "&": r"\&"}.get(c, c) for c in str(value)
    )
    for symbol, command in LATEX_ESCAPES.items():
        text = text.replace(symbol, command)
    return text


END_TABLE = r"\end{table}"


def latex(table: Table, title: str, caption: str, footer: str) -> str:
    """The table as a LaTeX float with booktabs rules, its notes below."""
    escaped = table.printed.map(latex_text).rename(index=latex_text, columns=latex_text)
    escaped.index.name = None if table.printed.index.name is None else latex_text(table.printed.index.name)
    body = escaped.to_latex(caption=latex_text(f"{title}. {caption}"), position="t", column_format=table.columns)
    notes = "".join(f"\\par\\footnotesize {latex_text(note)}\n" for note in table.notes)
    return f"% {footer}\n{body.replace(END_TABLE, notes + END_TABLE)}"


def save(result: Figure | Table, stem: Path, context: Context) -> list[Path]:
    """Write all files of an item: `<stem>.{pdf,png,svg,csv}` for a figure, `<stem>.{md,tex,csv}` for a table."""
    footer = provenance(context.records, context.scale)
    if isinstance(result, Figure):
        style.footer(result.canvas, footer)
        for kind in ("pdf", "png", "svg"):
            metadata = {"CreationDate": None} if kind == "pdf" else {"Date": None} if kind == "svg" else None
            atomically(
                stem.with_suffix(f".{kind}"),
                lambda path, kind=kind, metadata=metadata: result.canvas.savefig(
                    path, format=kind, metadata=metadata, bbox_inches="tight", dpi=200
                ),
            )
    else:
        texts = {"md": markdown, "tex": latex}
        for kind, render in texts.items():
            text = render(result, context.title, context.caption, footer)
            atomically(stem.with_suffix(f".{kind}"), lambda path, text=text: path.write_text(text))
    atomically(stem.with_suffix(".csv"), lambda path: result.numbers.to_csv(path, index=False, float_format="%.6g"))
    return sorted(stem.parent.glob(f"{stem.name}.*"))
