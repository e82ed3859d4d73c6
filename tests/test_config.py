"""Settings: the order of merging, what is refused and how, what makes a run's id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from unlocked import config
from unlocked.errors import SettingError


def one_line(caught: pytest.ExceptionInfo[SettingError], *words: str) -> None:
    """The message is a single line with all of `words`."""
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    for word in words:
        assert word in message


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the config folder that a test may change."""
    import shutil

    shutil.copytree(config.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(config, "CONFIGS", tmp_path / "configs")
    return tmp_path / "configs"


# merging


def test_later_places_win(configs: Path) -> None:
    """Defaults < the paper's training.yaml < the scale < an override < a grid point, setting by setting."""
    training, scale = configs / "acid" / "training.yaml", configs / "scales" / "mine.yaml"
    training.write_text("optim: {momentum: 0.1, lr: 0.2, epochs: 3, batch_size: 16}\ndata: {name: digits}\n")
    scale.write_text("acid: {training: {optim: {lr: 0.3, epochs: 4, batch_size: 17}}}\n")
    overrides = ["acid.training.optim.epochs=5", "acid.training.optim.batch_size=18"]
    base = config.defaults("acid", config.load_scale("mine", overrides))
    run = config.resolve(base, {"optim.batch_size": 19, "workers": 4})
    assert run.optim.weight_decay == 5e-4  # the default
    assert (run.optim.momentum, run.optim.lr, run.optim.epochs, run.optim.batch_size) == (0.1, 0.3, 5, 19)
    assert (run.scale, run.paper, run.workers) == ("mine", "acid", 4)


def test_resolving_does_not_touch_the_base(tiny_base: DictConfig) -> None:
    """One base serves many grid points; a resolved run can not be changed."""
    before = OmegaConf.to_yaml(tiny_base)
    run = config.resolve(tiny_base, {"workers": 8, "method": "allreduce"})
    assert OmegaConf.to_yaml(tiny_base) == before
    with pytest.raises(Exception, match=r"read-only|readonly|cannot"):
        run.workers = 16


def test_every_scale_and_paper_loads() -> None:
    """Every scale file that is there gives every paper a config."""
    assert "quick" in config.scale_names()
    for name in config.scale_names():
        scale = config.load_scale(name)
        assert scale.name == name
        for paper in config.RUNS:
            assert config.defaults(paper, scale).scale == name


def test_the_papers_settings() -> None:
    """training.yaml holds the published CIFAR-10 settings of A²CiD²."""
    read = config.read(config.CONFIGS / "acid" / "training.yaml")
    base = OmegaConf.merge(OmegaConf.structured(config.AcidRun), read)
    optim = base.optim
    assert (base.data.name, base.model.name, base.model.width) == ("cifar10", "resnet18", 1.0)
    assert (optim.epochs, optim.batch_size, optim.lr, optim.momentum) == (300, 128, 0.1, 0.9)
    assert (optim.weight_decay, optim.schedule, optim.milestones) == (5e-4, "large_batch", [0.5, 0.75])
    assert (base.dynamics, base.gradient_read, base.init, base.batch_norm) == (
        "exact",
        "event",
        "common",
        "recalibrate",
    )


# refusals


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["nonsense"], ["nonsense", "key=value"]),
        (["acid.trainnig.optim.lr=1"], ["trainnig"]),
        (["unheard=1"], ["unheard"]),
        (["seeds=[]"], ["seeds"]),
        (["seeds=[a]"], ["seeds"]),
        (["seeds=[0.5]"], ["seeds"]),
        (["runs_per_job=0"], ["runs_per_job", "0"]),
        (["acid.workers=[x]"], ["workers"]),
        (["seeds=[0"], ["seeds"]),
        (["=3"], ["override"]),
    ],
)
def test_bad_overrides_are_refused(overrides: list[str], words: list[str]) -> None:
    """A wrong override is one line that names it."""
    with pytest.raises(SettingError) as caught:
        config.load_scale("quick", overrides)
    one_line(caught, *words)


@pytest.mark.parametrize(
    "override",
    ["acid.training.optim.learning=1", "acid.training.optim.lr=fast", "acid.training.workers=many"],
)
def test_bad_training_settings_are_refused(override: str) -> None:
    """A wrong key or type inside `training` is one line that names it."""
    with pytest.raises(SettingError) as caught:
        config.defaults("acid", config.load_scale("quick", [override]))
    one_line(caught, override.split("=")[0].rsplit(".", 1)[1])


def test_unknown_scale_lists_the_known() -> None:
    """A scale without a file is refused with the names of those that have one."""
    with pytest.raises(SettingError) as caught:
        config.load_scale("huge")
    one_line(caught, "scale = 'huge'", "quick")


def test_unknown_paper_is_refused(tiny_base: DictConfig) -> None:
    """A paper that is not there is named."""
    with pytest.raises(SettingError) as caught:
        config.defaults("third", config.load_scale("quick"))
    one_line(caught, "paper = 'third'", "acid")


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"graph": "circle"}, ["graph = 'circle'", "ring"]),
    ({"method": "magic"}, ["method = 'magic'", "acid, baseline, allreduce"]),
    ({"dynamics": "loose"}, ["dynamics = 'loose'", "exact, released"]),
    ({"pairing": "random"}, ["pairing = 'random'", "poisson"]),
    ({"gradient_read": "end"}, ["gradient_read = 'end'"]),
    ({"init": "zero"}, ["init = 'zero'"]),
    ({"batch_norm": "none"}, ["batch_norm = 'none'"]),
    ({"data.name": "mnist"}, ["data.name = 'mnist'", "digits"]),
    ({"data.partition": "striped"}, ["data.partition = 'striped'"]),
    ({"data.augmentation": "mixup"}, ["data.augmentation = 'mixup'"]),
    ({"model.name": "vgg"}, ["model.name = 'vgg'", "resnet18"]),
    ({"optim.schedule": "cosine"}, ["optim.schedule = 'cosine'"]),
    ({"evaluation.workers": "sometimes"}, ["evaluation.workers = 'sometimes'"]),
    ({"runtime.wandb": "maybe"}, ["runtime.wandb = 'maybe'", "offline"]),
    ({"runtime.execution": "fast"}, ["runtime.execution = 'fast'"]),
    ({"runtime.reuse": "always"}, ["runtime.reuse = 'always'"]),
    ({"graph": "exponential", "workers": 12}, ["workers = 12", "power of two"]),
    ({"graph": "hypercube", "workers": 12}, ["workers = 12", "power of two"]),
    ({"graph": "torus", "workers": 13}, ["workers = 13"]),
    ({"workers": 2}, ["workers = 2", "at least 3"]),
    ({"workers": 0}, ["workers = 0"]),
    ({"workers": -4, "method": "allreduce"}, ["workers = -4"]),
    ({"workers": 1.5}, ["workers"]),
    ({"workers": "four"}, ["workers", "four"]),
    ({"rate": 0}, ["rate = 0"]),
    ({"rate": -1}, ["rate = -1"]),
    ({"rate": float("nan")}, ["rate = nan"]),
    ({"rate": float("inf")}, ["rate = inf"]),
    ({"seed": -1}, ["seed = -1"]),
    ({"optim.lr": 0}, ["optim.lr = 0"]),
    ({"optim.momentum": -0.1}, ["optim.momentum = -0.1"]),
    ({"optim.weight_decay": -1}, ["optim.weight_decay"]),
    ({"optim.epochs": 0}, ["optim.epochs = 0"]),
    ({"optim.epochs": 0.01}, ["optim.epochs = 0.01", "workers"]),
    ({"optim.batch_size": 0}, ["optim.batch_size = 0"]),
    ({"optim.batch_size": 1438}, ["optim.batch_size = 1438", "1437"]),
    ({"optim.batch_size": 33, "data.train_limit": 32}, ["optim.batch_size = 33", "32"]),
    ({"data.train_limit": 0}, ["data.train_limit = 0"]),
    ({"model.width": -1}, ["model.width"]),
    ({"evaluation.points": 0}, ["evaluation.points = 0"]),
    ({"runtime.threads": 0}, ["runtime.threads = 0"]),
    ({"no_such_key": 1}, ["no_such_key"]),
    ({"optim.no_such_key": 1}, ["no_such_key"]),
    ({"optim.lr.deep": 1}, ["optim.lr.deep"]),
]


@pytest.mark.parametrize(("point", "words"), REFUSED, ids=lambda value: "-".join(map(str, value)))
def test_what_cannot_work_is_refused(tiny_base: DictConfig, point: dict[str, Any], words: list[str]) -> None:
    """One line names the setting, its value, and where it helps what would be right."""
    with pytest.raises(SettingError) as caught:
        config.resolve(tiny_base, point)
    one_line(caught, *words)


BROKEN = {
    "list": b"[1, 2]",
    "broken": b"a: [1",
    "empty": b"",
    "word": b"hello",
    "tab": b"a:\n\t- b",
    "binary": bytes(range(256)),
    "unknown key": b"paper: acid\nscale: quick\nwrkers: 4\n",
    "wrong type": b"paper: acid\nscale: quick\nworkers: many\n",
    "no scale": b"paper: acid\nworkers: 4\n",
    "interpolation": b"paper: acid\nscale: quick\nworkers: ${nowhere}\n",
}


@pytest.mark.parametrize("name", [*BROKEN, "missing"])
def test_broken_files_are_refused(tmp_path: Path, name: str) -> None:
    """A file that is not the config of a run is one line, before anything is trained."""
    path = tmp_path / "run.yaml"
    if name in BROKEN:
        path.write_bytes(BROKEN[name])
    with pytest.raises(SettingError) as caught:
        config.from_file(path)
    one_line(caught)


def test_setting_errors_can_be_pickled() -> None:
    """They cross process borders whole."""
    import pickle

    error = pickle.loads(pickle.dumps(SettingError("rate", -1, "must be positive")))
    assert (error.setting, error.value, str(error)) == ("rate", -1, "rate = -1: must be positive")


# identity


def changed(run: DictConfig) -> dict[str, Any]:
    """Another valid value for every setting of `tiny_run`."""
    return {
        "seed": 1,
        "data.name": "fashion_mnist",
        "data.size": 6,
        "data.train_limit": 1000,
        "data.test_limit": 50,
        "data.augmentation": "none",
        "data.partition": "label_sorted",
        "model.name": "conv",
        "model.width": 0.5,
        "optim.lr": 0.03,
        "optim.momentum": 0.5,
        "optim.weight_decay": 0.0,
        "optim.batch_size": 16,
        "optim.epochs": 2,
        "optim.schedule": "constant",
        "optim.warmup_epochs": 1,
        "optim.milestones": [0.3],
        "optim.step_every": 7,
        "optim.step_gamma": 0.5,
        "evaluation.points": 2,
        "evaluation.workers": "never",
        "evaluation.recalibration_batches": 7,
        "evaluation.train_limit": 77,
        "method": "baseline",
        "graph": "star",
        "workers": 8,
        "rate": 2.0,
        "engine": "processes",
        "dynamics": "released",
        "gradient_read": "start",
        "init": "mean_of_independent",
        "batch_norm": "average",
    }


def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of all settings."""
    found: list[str] = []
    for key, value in values.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return found


def test_every_setting_but_the_runtime_is_in_the_id(tiny_run: Any) -> None:
    """Changing any one setting changes the id; the list of settings here is complete."""
    plain = tiny_run()
    other = changed(plain)
    # these have an effect beside another setting only: see the groups below
    elsewhere = {"paper", "scale", "data.concentration", "pairing", "owed", "study"}
    grouped = ("clock.", "quadratic.")
    settings = {key for key in leaves(config.identity(plain)) if not key.startswith(grouped)}
    assert settings <= set(other) | elsewhere
    ids = [config.run_id(tiny_run({key: value})) for key, value in other.items()]
    dirichlet = [config.run_id(tiny_run({"data.partition": "dirichlet", "data.concentration": c})) for c in (0.1, 0.3)]
    assert len({config.run_id(plain), *ids, *dirichlet}) == len(ids) + 3


AVAILABILITY = {"pairing": "availability"}
GROUPS: list[list[dict[str, Any]]] = [
    [{}, AVAILABILITY, AVAILABILITY | {"owed": "deterministic"}, AVAILABILITY | {"clock.latency": 0.1}],
    [{}, AVAILABILITY, AVAILABILITY | {"clock.bandwidth": 1e6}, AVAILABILITY | {"clock.latency": 0.1}],
    [{"clock.law": "constant"}, {"clock.law": "gamma"}, {"clock.law": "gamma", "clock.variation": 0.5}],
    [{"clock.gradient_seconds": 1.0}, {"clock.slow_workers": 1}, {"clock.slow_workers": 1, "clock.slow_factor": 4.0}],
    [{"clock.away_share": 0.1}, {"clock.away_share": 0.2}, {"clock.away_share": 0.1, "clock.away_time": 5.0}],
    [{"study": "averaging"}, {"study": "averaging", "quadratic.dimension": 5}, {"study": "quadratic"}],
    [
        {"study": "quadratic", f"quadratic.{k}": v}
        for k, v in {"noise": 0.5, "heterogeneous": True, "horizon": 9}.items()
    ],
]


@pytest.mark.parametrize("group", GROUPS)
def test_settings_beside_others_are_in_the_id(tiny_run: Any, group: list[dict[str, Any]]) -> None:
    """What has an effect only beside another setting changes the id there."""
    assert len({config.run_id(tiny_run(changes)) for changes in group}) == len(group)


WITHOUT_EFFECT: list[dict[str, Any]] = [
    {"owed": "deterministic"},
    {"clock.variation": 0.9},
    {"clock.slow_factor": 9.0},
    {"clock.away_time": 3.0},
    {"quadratic.dimension": 3},
]


@pytest.mark.parametrize("changes", WITHOUT_EFFECT)
def test_settings_without_effect_are_not(tiny_run: Any, changes: dict[str, Any]) -> None:
    """Where a setting has no effect, the same training has the same id."""
    assert config.run_id(tiny_run(changes)) == config.run_id(tiny_run())


def test_the_runtime_is_not_in_the_id(tiny_run: Any) -> None:
    """Device, threads, tracking and the rest of how a run is executed leave the id."""
    plain = tiny_run()
    runtime = {"device": "cuda:1", "threads": 7, "data_root": "/elsewhere", "execution": "loop", "wandb": "online"}
    runtime |= {"checkpoint_minutes": 0, "wandb_project": "p", "wandb_entity": "e", "reuse": "same_config"}
    runtime |= {"verify_data": False, "timeout": 5.0, "interface": "eth0", "backend": "nccl"}
    runtime |= {"precision": "bfloat16", "channels_last": True, "compile": True, "backend": "nccl"}
    assert set(runtime) == set(plain.runtime)
    changed_run = tiny_run({f"runtime.{key}": value for key, value in runtime.items()})
    assert config.run_id(changed_run) == config.run_id(plain)
    assert "runtime" not in config.identity(plain)


def test_ids_can_be_read(tiny_run: Any) -> None:
    """Method, graph, workers, rate, what is unusual, and the seed stand in front of eight hex digits."""
    stems = {
        "acid-ring-n4-r1-s0": {},
        "acid-ring-n4-r0.5-s3": {"rate": 0.5, "seed": 3},
        "acid-star-n8-r2-released-dirichlet-s0": {
            "graph": "star",
            "workers": 8,
            "rate": 2,
            "dynamics": "released",
            "data.partition": "dirichlet",
        },
        "baseline-complete-n4-r1-s0": {"method": "baseline", "graph": "complete"},
        "allreduce-n4-s0": {"method": "allreduce"},
    }
    for stem, point in stems.items():
        name = config.run_id(tiny_run(point))
        assert name[:-9] == stem
        assert name[-9] == "-"
        assert int(name[-8:], 16) >= 0


def test_ids_are_stable(tiny_run: Any, tmp_path: Path) -> None:
    """The order of settings, int or float, and a round trip through a file leave the id; it does not depend on time."""
    run = tiny_run({"rate": 2.0, "optim.epochs": 2.0, "workers": 8})
    again = tiny_run({"workers": 8, "optim.epochs": 2, "rate": 2})
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(run))
    assert config.run_id(run) == config.run_id(again) == config.run_id(config.from_file(path))
    assert config.config_hash(run)[:8] == config.run_id(run)[-8:]
    assert len(config.config_hash(run)) == 64


def test_allreduce_is_one_run_over_graphs_and_rates(tiny_run: Any) -> None:
    """Graph, rate and dynamics have no effect on all-reduce, nor on its id."""
    points: list[dict[str, Any]] = [{}, {"graph": "star"}, {"rate": 2.0}, {"dynamics": "released"}]
    assert len({config.run_id(tiny_run(p, method="allreduce")) for p in points}) == 1


def test_allreduce_is_one_run_over_what_it_ignores(tiny_run: Any) -> None:
    """gradient_read means nothing without an asynchronous worker: the same training has one id."""
    points: list[dict[str, Any]] = [{}, {"gradient_read": "start"}]
    assert len({config.run_id(tiny_run(p, method="allreduce")) for p in points}) == 1


def test_the_baseline_is_one_run_over_dynamics(tiny_run: Any) -> None:
    """Without momentum both dynamics are the same training."""
    assert config.run_id(tiny_run(method="baseline", dynamics="released")) == config.run_id(tiny_run(method="baseline"))


def test_concentration_counts_for_dirichlet_only(tiny_run: Any) -> None:
    """For iid data the concentration leaves the id."""
    assert config.run_id(tiny_run({"data.concentration": 9.0})) == config.run_id(tiny_run())


def test_the_budget(tiny_run: Any) -> None:
    """epochs * floor(N / batch), cut to a multiple of the workers."""
    assert config.total_gradients(tiny_run({"optim.epochs": 1})) == 179 // 4 * 4
    assert config.total_gradients(tiny_run({"optim.epochs": 3, "workers": 64})) == 537 // 64 * 64
    assert config.total_gradients(tiny_run({"data.train_limit": 100, "optim.epochs": 2})) == 24
    assert config.train_size(tiny_run({"data.train_limit": 10_000})) == 1437
