"""Links to all offline W&B runs by readable name, which W&B's own terminal reader takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fakes import SMALL, fake_sources
from unlocked import cli
from unlocked.artifact.record import folder_of
from unlocked.report.sources import Sources

WANDB = Path(sys.executable).with_name("wandb")


def write_run(folder: Path, name: str) -> None:
    """An offline run beside a record, as W&B writes it."""
    code = (
        "import sys, wandb; run = wandb.init(mode='offline', dir=sys.argv[1], id=sys.argv[2], name=sys.argv[2], "
        "settings=wandb.Settings(silent=True)); run.log({'loss': 0.25}); run.finish()"
    )
    subprocess.run([sys.executable, "-c", code, folder, name], check=True, timeout=120)


def test_browse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every run that has one, and no more; what a link leads to is read by `wandb leet`."""
    sources: Sources = fake_sources(tmp_path)
    where = ["--results", str(sources.results), "--set", *SMALL]
    assert cli.main(["browse", *where]) == 2
    assert "there are no offline W&B runs" in capsys.readouterr().err
    name = sources.frames.runs.index[0]
    write_run(folder_of(sources.results, sources.plan.runs[name]), name)
    for _ in range(2):  # a second call renews the links
        assert cli.main(["browse", *where]) == 0
    folder = sources.results / "quick" / "browse"
    assert f"wandb leet {folder}" in capsys.readouterr().out
    assert [link.name for link in folder.iterdir()] == [f"run-{name}"]
    line = [WANDB, "leet", "inspect", "--summary", "--json", folder / f"run-{name}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert f'"{name}"' in done.stdout, done.stderr
