"""Tables in LaTeX's `article`: those that stand in `paper_figures` compile, and nothing sticks out of the page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from unlocked.artifact.config import ROOT
from unlocked.items import latex
from unlocked.items.table import Table
from unlocked.report import claims

BUILT = sorted((ROOT / "paper_figures").glob("*/*/*.tex"))
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
WIDE = Table(
    ("setting", *(f"a long header of column {k}" for k in range(9))),
    (("χ₁ of √(χ₁χ₂), 5 % ± x̃_i & more", *["–0.123 ± 0.456"] * 9), *[("ő ‖∇‖ ≥ 2 · 3 − ½", *["1"] * 9)] * 9),
    (False, *[True] * 9),
    ("A note about <this> that is longer than a line of the page, so that it has to be broken somewhere, as all are.",),
)


def compile_tables(texts: list[str], folder: Path) -> str:
    """The log of a document with these tables, each on a page of its own."""
    body = "\n\\clearpage\n".join(texts)
    head = rf"\documentclass{{article}}\usepackage[T1]{{fontenc}}{latex.PREAMBLE}"
    (folder / "tables.tex").write_text(f"{head}\n\\begin{{document}}\n{body}\n\\end{{document}}\n")
    line = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    for _ in range(2):  # the second knows the labels and the columns of long tables
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, errors="replace", timeout=300)
        assert done.returncode == 0, done.stdout[-3000:]
    return (folder / "tables.log").read_text(errors="replace")


def complaints(log: str) -> list[str]:
    """Boxes that stick out, characters that the font lacks, labels that are there twice."""
    return re.findall(r"(?:Overfull|Missing character|LaTeX Warning: Label).*", log)


@needs_latex
def test_tables_of_this_version(tmp_path: Path) -> None:
    """Shipped, and those of other scales where somebody has built them."""
    assert BUILT
    for scale in sorted({path.parts[-3] for path in BUILT}):
        texts = [path.read_text() for path in BUILT if path.parts[-3] == scale]
        assert complaints(compile_tables(texts, tmp_path)) == []
    assert not [path for path in BUILT if re.search(r"\\caption\{(Table|Figure) \d", path.read_text())]


@needs_latex
def test_wide_and_long_tables(tmp_path: Path) -> None:
    """Ten columns of numbers, all symbols; the shipped verdicts, which break over pages."""
    verdicts = claims.as_table(claims.read(ROOT / "paper_figures" / "reduced" / "claims" / "verdicts.csv"))
    texts = [latex.render(WIDE, "Wide: 5 %", "wide"), latex.render(verdicts, "Verdicts", "verdicts")]
    assert complaints(compile_tables(texts, tmp_path)) == []
    assert r"\begin{longtable}" in texts[1]


@needs_latex
def test_a_table_that_sticks_out_is_found(tmp_path: Path) -> None:
    spoilt = latex.render(WIDE, "Wide", "wide").replace(r"max width=\linewidth", "")
    assert any("Overfull" in line for line in complaints(compile_tables([spoilt], tmp_path)))
