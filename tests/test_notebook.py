"""The notebook runs from its first cell to its last and draws both figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from unlocked.artifact.config import ROOT


@pytest.mark.slow
def test_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells as they stand, one after the other; without Jupyter, whose display is replaced."""
    shown: list[str] = []
    display = ModuleType("IPython.display")
    vars(display).update(Image=Path, Markdown=str, display=lambda path: shown.append(path.suffix))
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(ROOT)
    notebook = json.loads((ROOT / "notebooks" / "one_figure_of_each_paper.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {"__name__": "notebook"}
    for text in cells:
        exec(compile(text, "notebook", "exec"), names)
    assert shown == [".png", ".png"]
    assert all(path.stat().st_size > 10_000 for path in names["acid"] if path.suffix == ".png")
    assert not any(cell.get("outputs") for cell in notebook["cells"])  # kept without what it printed
