"""`benchmarks/gpu.py`: tried out on the CPU, where its numbers mean nothing; without a GPU it says so in one line."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("gpu")
    for name in ("gpu", "pages"):
        sys.modules.pop(name, None)
    torch.use_deterministic_algorithms(False)


def written(gpu: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> dict[str, Any]:
    """The tables that a call of the script leaves."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--results", str(folder), *arguments])
    gpu.pages.write("gpu", gpu.TEXT, gpu.measure, size="papers", device="cuda")
    return json.loads((folder / "gpu.json").read_text())


def test_every_table_is_measured(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All cells, ways and methods have a time; the hours cover every run of both scales and follow from the times."""
    monkeypatch.setitem(gpu.SIZES, "tiny", gpu.Size(3, 2, (2,), 16, 8, 8, 1 / 16, 2))
    found = written(gpu, monkeypatch, tmp_path, "--size", "tiny", "--device", "cpu")
    assert [row["cell"] for row in found["cells"]] == 2 * ["bare gradient", "allreduce", "baseline", "acid"]
    ways = {(row["network"], row["way"]) for row in found["executions"]}
    assert ways >= {(network, way) for network in ("mlp", "conv") for way in ("bare gradient", "loop", "batched")}
    assert [row["step"] for row in found["forward"]] == list(gpu.METHODS)
    for table in ("cells", "executions", "large", "forward"):
        assert all(0 < row["ms per gradient"] < math.inf for row in found[table])
    whole = {scale: [row for row in found["hours"] if row["scale"] == scale] for scale in ("gpu", "paper")}
    for scale, rows in whole.items():
        assert sum(row["runs"] for row in rows) == len(gpu.Plan(scale).runs)
        assert all((row["measured hours"] != row["estimated hours"]) == (row["data"] != "none") for row in rows)
    page = (tmp_path / "gpu.md").read_text()
    assert "no GPU: a trial of the script" in page
    assert "{" not in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no usable GPU") as stopped:
        written(gpu, monkeypatch, tmp_path)
    assert "\n" not in str(stopped.value)
    with pytest.raises(SystemExit, match="must be one of papers, tiny"):
        written(gpu, monkeypatch, tmp_path, "--size", "huge", "--device", "cpu")
    assert not list(tmp_path.iterdir())
