"""A table in LaTeX: a float that is shrunk where it is too wide for the page, or one that breaks over pages."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

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
}  # fmt: skip


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


def render(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    notes: Sequence[str],
    *,
    caption: str,
    label: str,
) -> str:
    """The whole table with booktabs rules, centred, its notes below in small print."""
    longest = [max(len(row[k]) for row in rows) for k in range(len(names))]
    head = " & ".join(header(name, number) for name, number in zip(names, numeric, strict=True))
    lines = "\n".join(" & ".join(map(text, row)) + r" \\" for row in rows)
    small = "\n".join(rf"\par {text(note)}" for note in notes)
    title, mark = rf"\caption{{{text(caption)}}}", rf"\label{{tab:{label}}}"
    if len(rows) > ROWS:
        return long(head, lines, small, f"{title} {mark}", longest, numeric)
    return rf"""\begin{{table}}[t]
\centering
{title}
{mark}
\smallskip
\setlength{{\tabcolsep}}{{4pt}}
\begin{{adjustbox}}{{max width=\linewidth}}
\begin{{tabular}}{{{columns(longest, numeric, "4.5cm")}}}
\toprule
{head} \\
\midrule
{lines}
\bottomrule
\end{{tabular}}
\end{{adjustbox}}
\smallskip
{{\footnotesize\raggedright
{small}
\par}}
\end{{table}}
"""


def long(head: str, lines: str, small: str, caption: str, longest: Sequence[int], numeric: Sequence[bool]) -> str:
    """The same in small type with a head on every page; long texts share what the short columns leave."""
    short = sum(length for length in longest if length <= WIDE)
    width = rf"\dimexpr(\linewidth-{0.5 * short:.1f}em-{2 * len(longest)}\tabcolsep)"
    width += rf"/{sum(length > WIDE for length in longest)}\relax"
    return rf"""{{\scriptsize\setlength{{\tabcolsep}}{{3pt}}
\begin{{longtable}}{{{columns(longest, numeric, width)}}}
{caption} \\
\toprule
{head} \\
\midrule
\endfirsthead
\toprule
{head} \\
\midrule
\endhead
\bottomrule
\endlastfoot
{lines}
\end{{longtable}}
{small}
\par}}
"""
