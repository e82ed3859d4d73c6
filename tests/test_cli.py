"""The command line: what it prints, how it fails, and that a record's config leads back to the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unlocked import cli
from unlocked.artifact import record, settings_docs
from unlocked.artifact.plan import Plan
from unlocked.papers import PAPERS
from unlocked.settings import names
from unlocked.units import human_time

FEW = ["--set", "seeds=[0]", "acid.workers=[4]", "acid.largest=4", "acid.training.optim.epochs=1"]


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends, exit code 2."""
    assert cli.main(arguments) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("unlocked: ")
    return errors[0]


def test_plan_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Every item and run has a line, the last line sums up."""
    assert cli.main(["plan", *FEW]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[0] for line in lines if line.strip().startswith(("acid_", "forward_gradient_", "claims_"))]
    assert named == list(Plan("quick").items)
    assert any("allreduce-n4-s0-" in line for line in lines)
    assert "items" in lines[-1]
    assert "gradients" in lines[-1]


BAD = {
    "plan --scale huge": "scale = 'huge'",
    "plan --set nonsense": "key=value",
    "plan --set acid.nothing=1": "nothing",
    "plan --runtime devise=cpu": "devise",
    "plan --runtime device": "key=value",
    "plan --paper third": "--paper = 'third'",
    "item acid_figure_77": "acid_figure_77",
    "item acid_table_4 --results nowhere": "nowhere",
    "train": "needs config files",
    "train --runs nothing": "run = 'nothing'",
    "train nowhere.yaml": "nowhere.yaml",
    "data mnist": "mnist",
    "data imagenet --root nowhere": "image-net.org",
    "report --upload": "add --wandb",
    "bench nothing": "must be one of gossip, ",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That says what is wrong; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    assert BAD[words] in refusal(words.split(), capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_records_config_reproduces_the_record(
    tiny_run: Any, trained: Callable[..., record.Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train <record>/config.yaml` elsewhere gives the same metrics, counts and history; given twice, once."""
    first = trained(tiny_run({"data.partition": "dirichlet"}, graph="star", dynamics="released", seed=4))
    command = ["train", *[str(first.folder / "config.yaml")] * 2, "--results", str(tmp_path / "again")]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 of ")
    second = record.load(record.folder_of(tmp_path / "again", first.run))
    for key in ("metrics", "counts", "config_hash", "run_id"):
        assert first.summary[key] == second.summary[key]
    assert (first.history["value"].to_numpy() == second.history["value"].to_numpy()).all()
    assert cli.main(command) == 0
    assert capsys.readouterr().out.startswith("0 of ")


def test_data_describes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Name, source, checksum and sizes, printed and written."""
    out = tmp_path / "deep" / "digits.json"
    assert cli.main(["data", "digits", "--out", str(out)]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described == json.loads(out.read_text())
    assert (described["train"], described["test"], described["classes"]) == (1437, 360, 10)
    assert len(described["checksum"]) == 64


def test_as_a_program(start_command: Callable) -> None:
    """`python -m unlocked` passes exit codes on: 2 with one line, 0 with JSON that a program can read."""
    bad, good = start_command("plan", "--scale", "huge"), start_command("plan", "--paper", "acid", "--json")
    assert len(bad.communicate(timeout=60)[1].strip().splitlines()) == 1
    described = json.loads(good.communicate(timeout=60)[0])
    assert described["total"]["runs"] == len(described["runs"]) > 10
    assert {run["paper"] for run in described["runs"]} == {"acid"}
    assert (bad.returncode, good.returncode) == (2, 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "1.5 min"), (1200, "20 min"), (6000, "1.7 h"), (200_000, "2 d")],
)
def test_human_time(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


def test_files_made_from_settings_are_current() -> None:
    """`unlocked settings --write` after a setting has changed brings them up to date."""
    for path, text in settings_docs.files().items():
        assert path.read_text() == text, f"{path} is stale: run `unlocked settings --write`"


def test_every_setting_is_documented() -> None:
    """The page has every kind of run and every setting of each, with type, default, range and meaning."""
    page = settings_docs.page()
    for kind in (kind for paper in PAPERS.values() for kind in paper.kinds):
        assert f"`{kind.__name__}`" in page
        for name, spec in [*settings_docs.free(kind), *names(type(kind().runtime))]:
            assert f"| `{name}` |" in page
            assert spec.rule.says, name
    assert "| `rate` | number | `1.0` | above 0, at most 1e+06 |" in page
    assert '| `device` | string | `"cpu"` | cpu\\|cuda' in page


def test_the_schema_says_what_is_allowed() -> None:
    """Of Snakemake's config: every setting of the runtime and of the workflow, nothing else."""
    schema = settings_docs.schema()
    known = schema["properties"]
    assert {"scale", "set", "wandb_upload", "device", "threads", "timeout", "precision", "execution"} <= known.keys()
    assert schema["additionalProperties"] is False
    assert known["wandb"]["enum"] == ["offline", "online", "disabled"]
    assert (known["threads"]["type"], known["threads"]["minimum"]) == (["integer"], 1)
    assert known["timeout"]["exclusiveMinimum"] == 0
    assert known["wandb_entity"]["type"] == ["string", "null"]
