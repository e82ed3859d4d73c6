"""A table in LaTeX: a float that is shrunk where it is too wide for the page, or one that breaks over pages."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from string import Template

from unlocked.items.table import Table

PREAMBLE = r"\usepackage{array,booktabs,adjustbox,longtable}"  # what the tables need
WIDE = 40  # characters from which a cell of words is broken into lines
HEADER = 13  # characters of a header's line
ROWS = 30  # of a float; a table with more breaks over pages
SYMBOLS = {
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "#": r"\#", "&": r"\&",
    "±": r"$\pm$", "²": r"\textsuperscript{2}", "χ₁": r"$\chi_1$", "χ₂": r"$\chi_2$", "√": r"$\surd$", "–": "--",
    "×": r"$\times$", "ő": r"\H{o}", "é": r"\'e", "≥": r"$\geq$", "≤": r"$\leq$", "·": r"$\cdot$", "−": "$-$",
    "…": r"\ldots{}", "<": "$<$", ">": "$>$", "χ": r"$\chi$", "ε": r"$\varepsilon$", "μ": r"$\mu$", "σ": r"$\sigma$",
    "ζ": r"$\zeta$", "∇": r"$\nabla$", "x̃": r"$\tilde{x}$", "½": r"$\frac{1}{2}$", "¼": r"$\frac{1}{4}$",
    "µ": r"$\mu$", "λ": r"$\lambda$", "η": r"$\eta$", "α̃": r"$\tilde{\alpha}$",
    "α": r"$\alpha$", "ᵀ": r"$^{\top}$", "‖": r"$\|$", "→": r"$\to$", "~": r"$\sim$",
    "†": r"$\dagger$",
}  # fmt: skip


FLOAT = Template(r"""\begin{table}[t]
\centering
$caption
$label
\smallskip
\setlength{\tabcolsep}{4pt}
\begin{adjustbox}{max width=\linewidth}
\begin{tabular}{$columns}
\toprule
$head \\
\midrule
$lines
\bottomrule
\end{tabular}
\end{adjustbox}
\smallskip
{\footnotesize\raggedright
$notes
\par}
\end{table}
""")
LONG = Template(r"""{\scriptsize\setlength{\tabcolsep}{3pt}
\begin{longtable}{$columns}
$caption $label \\
\toprule
$head \\
\midrule
\endfirsthead
\toprule
$head \\
\midrule
\endhead
\bottomrule
\endlastfoot
$lines
\end{longtable}
$notes
\par}
""")


def text(value: str) -> str:
    """A cell, a header or a caption: specials escaped, symbols as commands."""
    for symbol, command in SYMBOLS.items():
        value = value.replace(symbol, command)
    return value


def header(value: str, numeric: bool) -> str:
    """A column's title in short lines one above the other, so that it makes no column of numbers wide."""
    lines = textwrap.wrap(value, HEADER, break_long_words=False) or [""]
    stacked = r"\\".join(map(text, lines))
    return stacked if len(lines) == 1 else rf"\shortstack[{'r' if numeric else 'l'}]{{{stacked}}}"


def columns(longest: Sequence[int], numeric: Sequence[bool], width: str) -> str:
    """The column specification: numbers to the right, long texts as paragraphs of that width."""
    paragraph = rf">{{\raggedright\arraybackslash}}p{{{width}}}"
    return "".join(
        "r" if number else paragraph if length > WIDE else "l" for length, number in zip(longest, numeric, strict=True)
    )


def shared(longest: Sequence[int]) -> str:
    """The width of the long texts of a table as wide as the page: they share what the short columns leave."""
    short = sum(length for length in longest if length <= WIDE)
    left = rf"\dimexpr(\linewidth-{0.5 * short:.1f}em-{2 * len(longest)}\tabcolsep)"
    return rf"{left}/{sum(length > WIDE for length in longest)}\relax"


def render(table: Table, caption: str, label: str) -> str:
    """A table of its own with booktabs rules and its notes in small print, to be referred to as `tab:<label>`."""
    table = table.narrow()
    longest, breaks = [max(map(len, cells)) for cells in zip(*table.rows, strict=True)], len(table.rows) > ROWS
    return (LONG if breaks else FLOAT).substitute(
        caption=rf"\caption{{{text(caption)}}}",
        label=rf"\label{{tab:{label}}}",
        columns=columns(longest, table.numeric, shared(longest) if breaks else "4.5cm"),
        head=" & ".join(map(header, table.columns, table.numeric)),
        lines="\n".join(" & ".join(map(text, row)) + r" \\" for row in table.rows),
        notes="\n".join(rf"\par {text(note)}" for note in table.notes),
    )
