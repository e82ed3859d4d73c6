"""The command line: what it prints, how it fails, and that a record's config leads back to the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from unlocked import cli, config, record
from unlocked.plan import Plan

FEW = ["--set", "seeds=[0]", "acid.workers=[4]", "acid.largest=4", "acid.training.optim.epochs=1"]


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Items, runs and totals as JSON that a program can read."""
    assert cli.main(["plan", "--scale", "quick", "--paper", "acid", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert set(described) >= {"scale", "items", "runs", "total"}
    assert described["total"]["runs"] == len(described["runs"]) > 10
    assert set(described["total"]) == {"items", "runs", "gradients", "seconds", "memory_mb"}
    assert {run["paper"] for run in described["runs"]} == {"acid"}


def test_plan_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Every item and run has a line, the last line sums up."""
    assert cli.main(["plan", *FEW]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[0] for line in lines if line.strip().startswith(("acid_", "forward_gradient_", "claims_"))]
    assert named == list(Plan("quick").items)
    assert any("allreduce-n4-s0-" in line for line in lines)
    assert "items" in lines[-1]
    assert "gradients" in lines[-1]


BAD: dict[str, list[str]] = {
    "unknown scale": ["plan", "--scale", "huge"],
    "override without =": ["plan", "--set", "nonsense"],
    "unknown key": ["plan", "--set", "acid.nothing=1"],
    "unknown training key": ["plan", "--set", "acid.training.nothing=1"],
    "wrong type": ["plan", "--set", "acid.training.optim.lr=fast"],
    "broken yaml": ["plan", "--set", "seeds=[0"],
    "dangling reference": ["plan", "--set", "acid.training.optim.lr=${nowhere}"],
    "unknown data": ["plan", "--set", "acid.training.data.name=mnist"],
    "unknown model": ["plan", "--set", "acid.training.model.name=vgg"],
    "unknown graph": ["plan", "--set", "acid.training.graph=circle"],
    "not a power of two": ["plan", "--set", "acid.workers=[12]"],
    "batch too large": ["plan", "--set", "acid.training.optim.batch_size=5000"],
    "bad rate": ["plan", "--set", "acid.training.rate=-1"],
    "no seeds": ["plan", "--set", "seeds=[]"],
    "unknown runtime": ["plan", "--runtime", "devise=cpu"],
    "runtime without =": ["plan", "--runtime", "device"],
    "unknown item": ["item", "acid_figure_77"],
    "item without records": ["item", "acid_table_4", "--results", "nowhere"],
    "unknown batch": ["train", "--batch", "ffffffff"],
    "nothing to train": ["train"],
    "missing config": ["train", "nowhere.yaml"],
    "unknown data set": ["data", "mnist"],
    "data that is not there": ["data", "imagenet", "--root", "nowhere"],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, exactly one line on stderr that starts with the program's name, no trace."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(BAD[name]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("unlocked: ")
    assert list(tmp_path.iterdir()) == []


CONFIGS = {
    "list": "[1]",
    "unknown paper": "paper: third\nscale: quick",
    "no paper": "scale: quick",
    "unknown key": "paper: acid\nscale: quick\nwrkers: 3",
    "no scale": "paper: acid\nworkers: 4\ndata: {name: digits}",
    "impossible": "paper: acid\nscale: quick\ngraph: torus\nworkers: 7",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_bad_configs_are_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is no run's config fails in one line, before anything is trained."""
    path = tmp_path / "run.yaml"
    path.write_text(CONFIGS[name])
    assert cli.main(["train", str(path), "--results", str(tmp_path / "results")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()


DEVICES = ["cuda", "cuda:7", "gpu", "cuda:x", "mps", "meta", "xpu"]


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_is_not_there(
    device: str, tiny_run: Any, config_file: Callable, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asking for it is one line that names setting and value; nothing is trained or left behind."""
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    path = config_file(tiny_run({"runtime.device": device}))
    assert cli.main(["train", str(path), "--results", str(results)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert "runtime.device" in errors[0]
    assert device in errors[0]
    assert not results.exists()


def test_a_missing_data_set_stops_before_training(
    tiny_run: Any, config_file: Callable, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data are looked for before the first of several runs is trained."""
    here = config_file(tiny_run())
    there = config_file(tiny_run({"data.name": "imagenet", "runtime.data_root": str(tmp_path / "nowhere")}))
    assert cli.main(["train", str(here), str(there), "--results", str(results)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert record.load_all(results).empty


def test_a_config_given_twice_is_trained_once(
    tiny_run: Any, config_file: Callable, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same run twice on the command line is one run."""
    path = str(config_file(tiny_run()))
    assert cli.main(["train", path, path, "--results", str(results)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 of ")


def test_a_records_config_reproduces_the_record(
    tiny_run: Any, trained: Callable[[DictConfig], record.Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train <record>/config.yaml` elsewhere gives the same metrics, counts and history."""
    first = trained(tiny_run({"data.partition": "dirichlet"}, graph="star", dynamics="released", seed=4))
    command = ["train", str(first.folder / "config.yaml"), "--results", str(tmp_path / "again")]
    assert cli.main(command) == 0
    assert "1 of 1 runs trained" in capsys.readouterr().out
    second = record.load(record.folder_of(tmp_path / "again", first.config))
    for key in ("metrics", "counts", "config_hash", "run_id"):
        assert first.summary[key] == second.summary[key]
    assert (first.history["value"].to_numpy() == second.history["value"].to_numpy()).all()
    assert cli.main(command) == 0
    assert "0 of 1 runs trained, 1 already there" in capsys.readouterr().out


def test_train_a_batch_and_build_an_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """plan -> train --batch --index -> item, as the workflow calls them."""
    options = [*FEW, "acid.training.evaluation.points=2", "--runtime", "wandb=disabled"]
    made = cli.read_plan(cli.parser().parse_args(["plan", *options]))
    places = ["--results", str(tmp_path / "results")]
    for key in made.batches_of(made.item("acid_figure_1")):
        index = tmp_path / "index" / f"{key}.txt"
        assert cli.main(["train", "--batch", key, "--index", str(index), *options, *places]) == 0
        assert index.read_text().split() == list(made.batches[key].runs)
    capsys.readouterr()
    figures = ["--figures", str(tmp_path / "figures")]
    assert cli.main(["item", "acid_figure_1", *options, *places, *figures]) == 0
    printed = capsys.readouterr().out.split()
    assert sorted(Path(p).suffix for p in printed) == [".csv", ".pdf", ".png", ".svg"]
    assert all(Path(p).is_file() for p in printed)


def test_data_describes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Name, source, checksum and sizes, printed and written."""
    out = tmp_path / "deep" / "digits.json"
    assert cli.main(["data", "digits", "--out", str(out)]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described == json.loads(out.read_text())
    assert (described["train"], described["test"], described["classes"]) == (1437, 360, 10)
    assert len(described["checksum"]) == 64


def test_unknown_options_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse's own refusals use the same exit code."""
    for words in (["fly"], ["plan", "--paper", "third"], []):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 2
    assert "fly" in capsys.readouterr().err


def test_as_a_program(start_command: Callable, tmp_path: Path) -> None:
    """`python -m unlocked` passes exit codes on: 2 with one line, 0 with JSON."""
    bad = start_command("plan", "--scale", "huge")
    assert len(bad.communicate(timeout=60)[1].strip().splitlines()) == 1
    assert bad.returncode == 2
    good = start_command("plan", "--json")
    assert json.loads(good.communicate(timeout=60)[0])["total"]["runs"] > 0
    assert good.returncode == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "1.5 min"), (1200, "20 min"), (6000, "1.7 h"), (200_000, "2 d")],
)
def test_human_time(seconds: float, text: str) -> None:
    """Durations with their best unit."""
    assert cli.human_time(seconds) == text


def test_written_configs_are_complete(tiny_run: Any, config_file: Callable) -> None:
    """A config file has every setting, so that a reader needs no defaults."""
    run = tiny_run()
    written = OmegaConf.load(config_file(run))
    assert written == OmegaConf.create(OmegaConf.to_container(run))
    assert config.run_id(config.from_file(config_file(run))) == config.run_id(run)
