"""Settings: the order of merging, what is refused and how, what makes a run's id."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from unlocked.artifact import config
from unlocked.errors import SettingError
from unlocked.papers import PAPERS
from unlocked.papers.run import Run
from unlocked.settings import Settings, Spec, build, flatten, names, nest, plain, setting

KINDS = [kind for paper in PAPERS.values() for kind in paper.kinds]


def one_line(caught: pytest.ExceptionInfo[SettingError], *words: str) -> None:
    """The message is a single line with all of `words`."""
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert all(word in message for word in words), message


def test_later_places_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults < the paper's training.yaml < the scale < an override < a grid point, setting by setting."""
    configs = shutil.copytree(config.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(config, "CONFIGS", configs)
    training, scale = configs / "acid" / "training.yaml", configs / "scales" / "mine.yaml"
    training.write_text("optim: {momentum: 0.1, lr: 0.2, epochs: 3, batch_size: 16}\ndata: {name: digits}\n")
    scale.write_text("acid: {training: {optim: {lr: 0.3, epochs: 4, batch_size: 17}}}\n")
    overrides = ["acid.training.optim.epochs=5", "acid.training.optim.batch_size=18"]
    bases = config.Bases(PAPERS["acid"], config.load_scale("mine", overrides), {"threads": 3})
    run: Any = bases.run({"optim.batch_size": 19, "workers": 4})
    assert run.optim.weight_decay == 5e-4  # the default
    assert (run.optim.momentum, run.optim.lr, run.optim.epochs, run.optim.batch_size) == (0.1, 0.3, 5, 19)
    assert (run.scale, run.paper, run.workers, run.runtime.threads) == ("mine", "acid", 4, 3)
    with pytest.raises(AttributeError):
        run.workers = 16
    assert "graph" not in bases.run({"method": "allreduce"}).identity()  # shared settings go where they belong
    assert "data" not in bases.run({"study": "averaging"}).identity()


def test_the_papers_settings() -> None:
    """training.yaml holds the published CIFAR-10 settings of A²CiD²."""
    run: Any = config.run_from({"paper": "acid", **config.read_yaml(config.CONFIGS / "acid" / "training.yaml")})
    optim = run.optim
    assert (run.data.name, run.model.name, run.model.width) == ("cifar10", "resnet18", 1.0)
    assert (optim.epochs, optim.batch_size, optim.lr, optim.momentum) == (300, 128, 0.1, 0.9)
    assert (optim.weight_decay, optim.schedule, optim.milestones) == (5e-4, "large_batch", (0.5, 0.75))
    assert (run.dynamics, run.gradient_read, run.init) == ("exact", "event", "common")
    assert run.batch_norm == "recalibrate"


def wrong(spec: Spec) -> Iterator[Any]:
    """Values that a setting cannot have: another type, another name, a number beyond each bound."""
    yield {"deep": 1} if spec.kind is not dict else 1
    yield from ["magic"] if spec.rule.names or spec.kind not in (str, dict) else []
    if spec.kind in (int, float):
        yield from (True, float("nan"), float("inf"))
        yield from (bound for bound in (spec.rule.above, spec.rule.below) if bound is not None)
        yield from [spec.rule.least - 1] if spec.rule.least is not None else []
        yield from [spec.rule.most * 2] if spec.rule.most is not None else []


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_checked(kind: type[Run]) -> None:
    """The message has the dotted name of the setting and the value; where there are names to choose from, these."""
    for name, spec in names(kind):
        for value in wrong(spec):
            with pytest.raises(SettingError) as caught:
                build(kind, nest({name: [value] if spec.many else value}))
            one_line(caught, name, *([] if isinstance(value, dict) else [repr(value)]))
            if value == "magic" and spec.rule.names:
                one_line(caught, *list(spec.rule.allowed() or ())[:60])


FORWARD: dict[str, Any] = {"paper": "forward_gradient"}
SCARCE: dict[str, Any] = {"data.name": "digits", "data.train_limit": 32}
REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"paper": "third"}, ["paper = 'third'", "acid"]),
    ({"method": "magic"}, ["method = 'magic'", "allreduce, baseline, acid"]),
    ({"study": "magic"}, ["study = 'magic'", "quadratic"]),
    ({"engine": "magic"}, ["engine = 'magic'", "virtual, processes"]),
    ({"study": "averaging", "engine": "processes"}, ["engine = 'processes'", "virtual"]),
    ({"study": "averaging", "method": "allreduce"}, ["method = 'allreduce'", "baseline, acid"]),
    ({"clock.slow_workers": 65}, ["slow_workers = 65", "64 workers"]),
    ({"engine": "processes", "clock.slow_workers": 65}, ["slow_workers = 65", "64 workers"]),
    ({"clock.variation": 0.9}, ["clock.variation = 0.9", "gamma"]),
    ({"clock.slow_factor": 9}, ["clock.slow_factor = 9", "slow_workers"]),
    ({"clock.latency": 0.1}, ["clock.latency = 0.1", "availability"]),
    ({"clock.bandwidth": 1e6}, ["clock.bandwidth = 1000000", "availability"]),
    ({"study": "averaging", "clock.latency": 0.1}, ["clock.latency = 0.1"]),
    ({"data.concentration": 9}, ["data.concentration = 9", "dirichlet"]),
    ({"model.width": 0.001}, ["model.width = 0.001", "channels"]),
    ({"optim.milestones": [0.7, 0.5]}, ["optim.milestones", "grow"]),
    ({"optim.epochs": 0.01}, ["optim.epochs = 0.01", "workers"]),
    ({"optim.batch_size": 33, **SCARCE}, ["optim.batch_size = 33", "32"]),
    ({"runtime.device": "gpu"}, ["runtime.device = 'gpu'", "cuda"]),
    ({"engine": "processes", "runtime.backend": "nccl"}, ["runtime.backend = 'nccl'", "cuda"]),
    ({"graph": "exponential", "workers": 12}, ["workers = 12", "power of two"]),
    ({"workers": 2}, ["workers = 2", "at least 3"]),
    ({"scale": "../up"}, ["scale = '../up'"]),
    ({"no_such_key": 1}, ["no_such_key"]),
    # settings that the kind of run does not have
    ({"method": "allreduce", "graph": "star"}, ["graph = 'star'", "AllReduce"]),
    ({"method": "baseline", "dynamics": "released"}, ["dynamics = 'released'", "Baseline"]),
    ({"study": "averaging", "data.name": "digits"}, ["data.name = 'digits'", "AveragingAcid"]),
    ({"quadratic.dimension": 3}, ["quadratic.dimension = 3", "Acid"]),
    ({"engine": "processes", "pairing": "availability"}, ["pairing = 'availability'", "ProcessAcid"]),
    (FORWARD | {"target": "global", "guess": "global", "space": "weight"}, ["space = 'weight'", "Backpropagation"]),
    (FORWARD | {"guess": "random", "target": "global", "auxiliary": "cnn"}, ["auxiliary = 'cnn'", "GlobalNoise"]),
    (FORWARD | {"guess": "local", "tangents": 2}, ["tangents = 2", "HeadGuess"]),
    (FORWARD | {"target": "local", "guess": "global"}, ["guess = 'global'", "global"]),
    (FORWARD | {"target": "magic"}, ["target = 'magic'", "local"]),
    (FORWARD | {"guess": "magic"}, ["guess = 'magic'", "ntk"]),
    (FORWARD | {"study": "magic"}, ["study = 'magic'", "estimator_error"]),
    (FORWARD | {"study": "auxiliary_cost", "optim.lr": 1}, ["optim.lr = 1", "FreshNetStudy"]),
    (FORWARD | {"study": "auxiliary_cost", "optim.batch_size": 33, **SCARCE}, ["optim.batch_size = 33", "32"]),
    (FORWARD | {"optim.batch_size": 33, **SCARCE}, ["optim.batch_size = 33", "32"]),
    (FORWARD | {"optim.batch_size": 8, "measure.batch_size": 17, **SCARCE}, ["measure.batches = 2", "34 images of 32"]),
    (FORWARD | {"mode": "forward_mode", "runtime.precision": "bfloat16"}, ["runtime.precision = 'bfloat16'"]),
    (FORWARD | {"mode": "forward_mode", "runtime.compile": True}, ["runtime.compile = True"]),
    (FORWARD | {"space": "weight", "averaged": False, "runtime.compile": True}, ["runtime.compile = True"]),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=lambda value: "-".join(map(str, value)))
def test_what_cannot_work_is_refused(settings: dict[str, Any], words: list[str]) -> None:
    """One line names the setting, its value, and where it helps what would be right."""
    with pytest.raises(SettingError) as caught:
        config.run_from({"paper": "acid", **settings})
    one_line(caught, *words)


BROKEN = {
    "list": b"[1, 2]",
    "broken": b"a: [1",
    "empty": b"",
    "word": b"hello",
    "tab": b"a:\n\t- b",
    "binary": bytes(range(256)),
    "no paper": b"workers: 4\n",
    "unknown key": b"paper: acid\nwrkers: 4\n",
    "interpolation": b"paper: acid\nworkers: ${nowhere}\n",
}


@pytest.mark.parametrize("name", [*BROKEN, "missing"])
def test_broken_files_are_refused(tmp_path: Path, name: str) -> None:
    """A file that is not the settings of a run is one line, before anything is trained."""
    path = tmp_path / "run.yaml"
    if name in BROKEN:
        path.write_bytes(BROKEN[name])
    with pytest.raises(SettingError) as caught:
        config.run_from_file(path)
    one_line(caught)


def test_setting_errors_can_be_pickled() -> None:
    """They cross process borders whole."""
    error = pickle.loads(pickle.dumps(SettingError("rate", -1, "must be positive")))
    assert (error.setting, error.value, str(error)) == ("rate", -1, "rate = -1: must be positive")


# where a setting has an effect: beside these others
BESIDE: dict[str, dict[str, Any]] = {
    "data.concentration": {"data.partition": "dirichlet"},
    "clock.variation": {"clock.law": "gamma"},
    "clock.slow_factor": {"clock.slow_workers": 1},
    "clock.latency": {"pairing": "availability"},
    "clock.bandwidth": {"pairing": "availability"},
    "per_block": {"space": "weight"},
}
FIXED = {"clock.latency", "clock.bandwidth"}  # in studies, where averaging takes no time


def others(spec: Spec) -> Iterator[Any]:
    """Values that a setting could have instead of its default."""
    yield from spec.rule.allowed() or ()
    if spec.kind is bool:
        yield from (True, False)
    elif spec.kind is str:
        yield "other"
    elif spec.kind in (int, float):
        yield from ([0.25] if spec.many else 8, 16, 0.5, 20_000)


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_but_the_runtime_is_in_the_id(kind: type[Run]) -> None:
    """Another value of any one setting is another run; where one only has an effect beside others, beside these."""
    declared = dict(names(kind))
    for name, spec in declared.items():
        beside = {key: value for key, value in BESIDE.get(name, {}).items() if key in declared}
        plain, changed = build(kind, nest(beside)).id, set()
        for value in others(spec):
            try:
                changed.add(build(kind, nest({**beside, name: value})).id)
            except SettingError:
                continue
        is_fixed = len(spec.rule.allowed() or ()) == 1 or (name in FIXED and "quadratic.dimension" in declared)
        assert bool(changed - {plain}) != (is_fixed or name.startswith("runtime.")), name


@pytest.mark.parametrize("kind", KINDS)
def test_runs_survive_files(kind: type[Run], tmp_path: Path) -> None:
    """A run that is written and read is the same run, of the same kind; a file has every setting."""
    path = tmp_path / "config.yaml"
    run = kind()
    assert flatten(run.settings()).keys() == {"paper", *dict(names(kind))}
    path.write_text(yaml.safe_dump(run.settings()))
    again = config.run_from_file(path)
    assert again == run
    assert (type(again), again.id) == (kind, run.id)


def test_ids_can_be_read(tiny_run: Any) -> None:
    """Method, graph, workers, rate, what is unusual, and the seed stand in front of eight hex digits."""
    released = {"graph": "star", "workers": 8, "rate": 2, "dynamics": "released", "data.partition": "dirichlet"}
    stems: dict[str, dict[str, Any]] = {
        "acid-ring-n4-r1-s0": {},
        "acid-ring-n4-r0.5-s3": {"rate": 0.5, "seed": 3},
        "acid-star-n8-r2-released-dirichlet-s0": released,
        "baseline-complete-n4-r1-s0": {"method": "baseline", "graph": "complete"},
        "allreduce-n4-s0": {"method": "allreduce"},
        "processes-allreduce-n4-s0": {"method": "allreduce", "engine": "processes"},
        "averaging-acid-ring-n4-r1-s0": {"study": "averaging"},
        "acid-ring-n4-r1-c0.25-clip1-s0": {"strength": 0.25, "optim.clip": 1},
    }
    for stem, point in stems.items():
        assert re.fullmatch(rf"{stem}-[0-9a-f]{{8}}", tiny_run(point).id)


def test_what_leaves_the_id(tiny_run: Any) -> None:
    """The order of settings, int or float, and `averaged` left out where it is what the space has usually."""
    run = tiny_run({"rate": 2.0, "optim.epochs": 2.0, "workers": 8})
    assert run.id == tiny_run({"workers": 8.0, "optim.epochs": 2, "rate": 2}).id
    assert run.hash[:8] == run.id[-8:]
    for space in ("weight", "activity"):
        settings = FORWARD | {"guess": "random", "target": "global", "space": space}
        assert config.run_from(settings) == config.run_from({**settings, "averaged": space == "weight"})


@dataclass(frozen=True)
class Part(Settings):
    old: int = setting(1, "there from the beginning")
    new: str | None = setting(None, "added later", later=True)


@dataclass(frozen=True)
class Whole(Settings):
    part: Part = setting(Part(), "nested")


def test_a_setting_that_was_added_later_keeps_the_ids_of_runs() -> None:
    """At its default it is left out of what the id is made of, nested too; with another value it counts."""
    assert plain(Whole()) == {"part": {"old": 1, "new": None}}
    assert plain(Whole(), later=False) == {"part": {"old": 1}}
    assert plain(Whole(Part(new="a")), later=False) == {"part": {"old": 1, "new": "a"}}


def test_later_settings_are_in_the_identity_and_count_where_they_differ(tiny_run: Any) -> None:
    assert tiny_run().identity()["strength"] == 1.0
    assert len({tiny_run(change).hash for change in ({}, {"strength": 0.5}, {"optim.clip": 1.0})}) == 3


def test_the_budget(tiny_run: Any) -> None:
    """epochs * floor(N / batch), cut to a multiple of the workers."""
    assert tiny_run({"optim.epochs": 1}).total_gradients == 179 // 4 * 4
    assert tiny_run({"optim.epochs": 3, "workers": 64}).total_gradients == 537 // 64 * 64
    assert tiny_run({"data.train_limit": 100, "optim.epochs": 2}).total_gradients == 24
    assert tiny_run({"data.train_limit": 10_000}).data.images == 1437
    assert tiny_run({"study": "averaging"}).total_gradients == 0
