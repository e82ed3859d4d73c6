"""Training of paper B: what is trained and what is not, backpropagation as plain torch has it, seeds, stops, errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from forward_gradient.runs import advance, parameters, tiny
from unlocked import config, fingerprint, loop, plan, record
from unlocked.errors import SettingError
from unlocked.forward_gradient import network
from unlocked.forward_gradient.trainer import Training
from unlocked.tracking import Interrupted, Recorder
from unlocked.vision import data as vision_data
from unlocked.vision.data import Dataset

LAST = "auxiliaries.7."


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return vision_data.load("digits", train_limit=96, test_limit=50)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Cells ---------------------------------------------------------------------------------------------------------------


def changed(run: DictConfig, data: Dataset) -> tuple[set[str], set[str]]:
    """Names of parameters that a training changed, and of those that it left bit by bit."""
    training = Training(run, data)
    before = parameters(training)
    after = parameters(advance(training, 3))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    return moved, set(before) - moved


@pytest.mark.parametrize("space", ["weight", "activity"])
@pytest.mark.parametrize(
    ("target", "guess", "trains_heads"),
    [
        ("global", "global", False),
        ("global", "random", False),
        ("global", "local", True),
        ("global", "fixed_ntk", False),
        ("local", "local", True),
        ("local", "random", True),
        ("local", "fixed_ntk", True),
        ("local", "ntk", True),
    ],
)
def test_each_cell_trains_its_part_and_no_other(
    digits: Dataset, target: str, guess: str, space: str, trains_heads: bool
) -> None:
    """All blocks and the classifier are trained; other auxiliary nets by local losses alone, guess nets never."""
    moved, still = changed(tiny(target=target, guess=guess, space=space, auxiliary="cnn"), digits)
    assert not {name for name in still if name.startswith(("blocks.", LAST))}
    heads = {name for name in moved | still if name.startswith("auxiliaries.") and not name.startswith(LAST)}
    # decay alone would move a weight, so bits that stay say that there was none
    assert heads <= (moved if trains_heads else still)
    guesses = {name for name in moved | still if name.startswith("guess_auxiliaries.")}
    assert bool(guesses) == (target == "local" and guess in ("ntk", "fixed_ntk"))
    if guess == "fixed_ntk":
        assert guesses <= still


def test_ntk_nets_are_drawn_anew_every_step_from_the_seed(digits: Dataset) -> None:
    """Two steps, two draws; the same step of another training, the same draw; the classifier is not drawn anew."""
    first, second = (Training(tiny(guess="ntk", auxiliary="linear"), digits) for _ in range(2))
    drawn = []
    for number in range(2):
        first.step(number)
        drawn.append(first.net.auxiliaries[0].state_dict()["3.weight"].clone())
    assert not torch.equal(*drawn)
    second.step(1)
    assert torch.equal(second.net.auxiliaries[0].state_dict()["3.weight"], drawn[1])


def test_parameters_without_gradient_have_no_momentum(digits: Dataset) -> None:
    """SGD keeps a buffer for exactly the parameters that got a gradient."""
    training = advance(Training(tiny(target="global", guess="global"), digits), 2)
    with_buffer = {name for name, p in training.named.items() if p in training.optimiser.state}
    assert with_buffer == {name for name in training.named if name.startswith(("blocks.", LAST))}


def test_backpropagation_is_a_plain_torch_loop(digits: Dataset) -> None:
    """The cell global/global takes the steps that autograd and torch's SGD take on the same batches."""
    run = tiny(target="global", guess="global")
    training = Training(run, digits)
    net = copy.deepcopy(training.net)
    model = nn.Sequential(*net.blocks, net.auxiliaries[-1]).train()
    optimiser = torch.optim.SGD(model.parameters(), run.optim.lr, momentum=0.9, weight_decay=5e-4)
    for number in range(5):
        images, labels = training.batches(number)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    advance(training, 5)
    ours = nn.Sequential(*training.net.blocks, training.net.auxiliaries[-1])
    for (name, expected), found in zip(model.state_dict().items(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_local_learning_is_the_same_in_every_space(digits: Dataset) -> None:
    """Where target and guess are one, settings of spaces change nothing, and so make no other run."""
    names = {
        config.run_id(tiny(target="local", guess="local", space=space, averaged=averaged))
        for space in ("weight", "activity")
        for averaged in (True, False, None)
    }
    assert len(names) == 1


def test_methods_see_the_same_batches_and_start(digits: Dataset) -> None:
    """Common random numbers: with one seed all methods share data order and initial blocks, with two they do not."""
    one, two = (Training(tiny(guess=guess), digits) for guess in ("random", "local"))
    other = Training(tiny(guess="local", seed=1), digits)
    for number in (0, 7):
        assert torch.equal(one.batches(number)[0], two.batches(number)[0])
        assert not torch.equal(one.batches(number)[0], other.batches(number)[0])
    blocks = [t.net.blocks.state_dict() for t in (one, two, other)]
    assert all(torch.equal(a, b) for a, b in zip(blocks[0].values(), blocks[1].values(), strict=True))
    assert not torch.equal(blocks[0]["0.0.0.weight"], blocks[2]["0.0.0.weight"])


def test_an_epoch_shows_every_image_once(digits: Dataset) -> None:
    """96 images in six batches of 16, another order in the next epoch."""
    batches = Training(tiny(), digits).batches
    epochs = [torch.cat([batches(6 * epoch + k)[0] for k in range(6)]).flatten(1) for epoch in range(2)]
    assert not torch.equal(*epochs)
    assert sorted(map(tuple, epochs[0].tolist())) == sorted(map(tuple, epochs[1].tolist()))


# Measures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "guess"), [("global", "ntk"), ("local", "random"), ("global", "fixed_ntk")])
def test_measuring_changes_nothing(digits: Dataset, target: str, guess: str) -> None:
    """Neither parameters, buffers, modes nor torch's generator know whether a training was measured."""
    training = advance(Training(tiny(target=target, guess=guess, auxiliary="cnn"), digits), 2)
    state = copy.deepcopy(training.net.parts.state_dict())
    modes = [m.training for m in training.net.parts.modules()]
    generator = torch.get_rng_state()
    training.measure(1)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), training.net.parts.state_dict().values(), strict=True))
    assert modes == [m.training for m in training.net.parts.modules()]
    assert torch.equal(generator, torch.get_rng_state())


def test_metrics_of_every_block(digits: Dataset) -> None:
    """Accuracy and loss by block, the last being the net's; measures of all blocks but the last."""
    training = Training(tiny(space="weight", measure__tensors=True), digits)
    before = training.measure(0).metrics
    assert "train_loss" not in before
    advance(training, 3)
    metrics = training.measure(1).metrics
    for part in ("train", "test"):
        for kind in ("accuracy", "loss"):
            assert len(metrics[f"block_{part}_{kind}"]) == 8
            assert metrics[f"block_{part}_{kind}"][-1] == metrics[f"{part}_{kind}"]
    for name in ("cosine", "norm_ratio", "target_norm", "guess_norm", "coefficient_q50", "estimate_cosine"):
        assert len(metrics[name]) == 7
        assert np.isfinite(metrics[name]).all()
    assert any(name.startswith("cosine/") for name in metrics)
    assert -1 <= metrics["net_estimate_cosine"] <= 1


def test_alignment_of_backpropagation_is_one(digits: Dataset) -> None:
    """Target, guess, estimate and gradient are one."""
    metrics = Training(tiny(target="global", guess="global"), digits).measure(0).metrics
    assert metrics["cosine"] == pytest.approx([1] * 7, abs=1e-4)
    assert metrics["estimate_cosine"] == pytest.approx([1] * 7, abs=1e-4)


def test_accuracy_weighs_samples_alike(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches of an evaluation do not matter, uneven ones included."""
    run = tiny()
    scores = network.tested(network.build(run, digits), run, digits)
    whole = network.accuracy_and_loss(scores, digits.test)
    monkeypatch.setattr(network, "EVALUATION_BATCH", 7)
    for one, other in zip(whole, network.accuracy_and_loss(scores, digits.test), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    images, labels = digits.test.batch(range(50))
    expected = (scores(images)[-1].argmax(1) == labels).double().mean()
    assert whole[0][-1] == pytest.approx(float(expected))


def test_best_accuracy_is_kept_apart(digits: Dataset) -> None:
    """The best of all evaluations, whatever the last one is."""
    training = Training(tiny(), digits)
    training.best = 0.999
    metrics = training.measure(0).metrics
    assert metrics["best_test_accuracy"] == 0.999 > metrics["test_accuracy"]


# The loop ------------------------------------------------------------------------------------------------------------


def test_same_seed_same_bits(digits: Dataset, tmp_path: Path) -> None:
    """Two runs of one config have one history, to the last bit."""
    histories = []
    for place in ("one", "two"):
        run = tiny(guess="random", space="weight")
        recorder = Recorder(tmp_path / place / config.run_id(run), run, total_steps=6)
        loop.run(Training(run, digits), recorder, digits)
        histories.append(record.load(recorder.folder).history.drop(columns="wall_time"))
    assert histories[0].equals(histories[1])


@pytest.mark.parametrize(("target", "guess"), [("global", "ntk"), ("global", "random"), ("local", "fixed_ntk")])
def test_a_stopped_run_continues_bit_by_bit(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, guess: str
) -> None:
    """Stopped inside a span and continued in a new process, the record is that of an undisturbed run."""
    monkeypatch.setattr(loop, "STEPS_PER_LOOK", 2)
    run = tiny(target=target, guess=guess, optim__epochs=2)
    whole = Recorder(tmp_path / "whole" / config.run_id(run), run, total_steps=12)
    loop.run(Training(run, digits), whole, digits)
    folder = tmp_path / "parts" / config.run_id(run)
    stop = SimpleNamespace(requested=None)
    training = Training(run, digits)
    step = training.step

    def stopping(number: int) -> None:
        step(number)
        if number == 7:
            stop.requested = 15

    training.step = stopping
    with pytest.raises(Interrupted):
        loop.run(training, Recorder(folder, run, total_steps=12, stop=stop), digits)
    again = Recorder(folder, run, total_steps=12)
    loop.run(Training(run, digits), again, digits)
    assert again.resumed == 1
    found, expected = (record.load(r.folder).history.drop(columns="wall_time") for r in (again, whole))
    assert found.equals(expected)


def test_divergence_is_a_result(digits: Dataset, tmp_path: Path) -> None:
    """A learning rate that blows up ends in a record that says so."""
    run = tiny(optim__lr=1e12, guess="random", space="weight")
    recorder = Recorder(tmp_path / config.run_id(run), run, total_steps=6)
    assert loop.run(Training(run, digits), recorder, digits)["status"] == "diverged"
    assert record.load(recorder.folder).diverged


def test_the_engine_has_a_fingerprint() -> None:
    """Every study has an engine whose code is followed down to the estimator."""
    for study in config.STUDIES["forward_gradient"]:
        engine = plan.engine(tiny(study=study))
        assert "unlocked.forward_gradient.estimator" in fingerprint.modules(engine)
        assert len(fingerprint.training(engine)) == 16


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "globl"}, "target = 'globl': must be one of global, local"),
        ({"guess": "ntkk"}, "guess = 'ntkk': must be one of"),
        ({"space": "weights"}, "space = 'weights': must be one of"),
        ({"auxiliary": "tree"}, "auxiliary = 'tree': must be one of"),
        ({"study": "none"}, "study = 'none': must be one of"),
        ({"norm": "layer"}, "norm = 'layer': must be one of"),
        ({"model__name": "resnet18"}, "model.name = 'resnet18': must be one of resnet18_8"),
        ({"model__width": 0.001}, "width = 0.001: must leave at least one of 64 channels"),
        ({"target": "local", "guess": "global"}, "only stands with target = global"),
        ({"guess": "global", "mode": "forward_mode"}, "never forms the global target"),
        ({"guess": "local", "tangents": 3}, "several need guess = random"),
        ({"mode": "forward_mode", "per_sample_method": "one_pass"}, "samples interact through BatchNorm"),
        ({"data__partition": "dirichlet"}, "there is one worker"),
        ({"measure__batches": 99}, "images of 96"),
        ({"optim__batch_size": 97}, "images to train"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        tiny(**settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_equal_trainings_share_one_id() -> None:
    """Settings that have no effect do not make another run; those that have, do."""
    same = [
        (tiny(guess="global", space="weight"), tiny(guess="global", auxiliary="mlp", distribution="rademacher")),
        (tiny(guess="random", auxiliary="cnn"), tiny(guess="random", auxiliary="linear")),
        (tiny(guess="local", distribution="rademacher"), tiny(guess="local")),
        (tiny(space="weight", averaged=True), tiny(space="weight")),
        (tiny(study="auxiliary_cost", optim__lr=1.0), tiny(study="auxiliary_cost", guess="random")),
    ]
    assert all(config.run_id(a) == config.run_id(b) for a, b in same)
    different = [
        (tiny(target="local", guess="random", auxiliary="cnn"), tiny(target="local", guess="random", auxiliary="mlp")),
        (tiny(guess="random"), tiny(guess="random", distribution="rademacher")),
        (tiny(space="weight", averaged=False), tiny(space="weight")),
    ]
    assert all(config.run_id(a) != config.run_id(b) for a, b in different)
    assert config.run_id(tiny(auxiliary="cnn", model__width=1)).startswith("global-local-activity-cnn-b8-s0-")


def test_forward_mode_trains_as_projection_does(digits: Dataset) -> None:
    """Jacobian-vector products give the same steps as backpropagating the target, to rounding."""
    runs = [tiny(space="weight", mode=mode, optim__lr=1e-3) for mode in ("projection", "forward_mode")]
    after = [parameters(advance(Training(run, digits), 2)) for run in runs]
    for name in after[0]:
        torch.testing.assert_close(after[0][name], after[1][name], rtol=1e-3, atol=1e-5, msg=name)


# The papers' settings ------------------------------------------------------------------------------------------------


def write_files(root: Path) -> None:
    """Synthetic images in CIFAR-10's and ImageNet32's own formats: 10 and 20 for training, 2 and 2 for test."""
    draws = np.random.default_rng(0)

    def write(path: Path, labels: list[int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        images = draws.integers(0, 256, (2, 3072), dtype=np.uint8)
        path.write_bytes(pickle.dumps({"data": images, "labels": labels}, protocol=2))

    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        write(root / "cifar-10-batches-py" / name, [3, 9])
    for name in (*(f"train_data_batch_{k}" for k in range(1, 11)), "val_data"):
        write(root / "imagenet32" / name, [1, 1000])


PAPER_CELLS = [
    {"guess": "global"},
    {"target": "local", "guess": "local", "auxiliary": "mlp"},
    {"guess": "local", "space": "activity"},
    {"guess": "ntk", "space": "weight", "auxiliary": "linear"},
    {"guess": "random", "space": "activity", "distribution": "rademacher"},
    {"target": "local", "guess": "fixed_ntk", "space": "weight"},
    {"guess": "local", "space": "weight", "averaged": False},
    {"model.name": "resnet18_16", "guess": "local", "space": "activity"},
    {"model.name": "resnet18_16", "guess": "random", "space": "weight"},
    {"model.name": "resnet18_2", "guess": "local", "space": "weight", "auxiliary": "copy"},
    {"data.name": "imagenet32", "guess": "global"},
    {"data.name": "imagenet32", "guess": "fixed_ntk", "space": "activity"},
]


@pytest.mark.slow
@pytest.mark.parametrize("cell", PAPER_CELLS, ids=lambda c: "-".join(map(str, c.values())))
def test_cells_of_the_papers_settings_train(tmp_path: Path, cell: dict[str, Any]) -> None:
    """The paper scale's own config at full width takes two steps and leaves a record, on files in the real format."""
    write_files(tmp_path)
    small = {
        "data.train_limit": 8, "data.test_limit": 2, "optim.batch_size": 4, "optim.epochs": 1, "evaluation.points": 1,
        "measure.batches": 1, "measure.batch_size": 4, "runtime.wandb": "disabled",
    }  # fmt: skip
    run = config.resolve(config.defaults("forward_gradient", config.load_scale("paper")), small | cell)
    assert run.model.width == 1
    recorder = Recorder(tmp_path / config.run_id(run), run, total_steps=2)
    data = vision_data.load(run.data.name, tmp_path, train_limit=8, test_limit=2, download=False, verify=False)
    assert loop.run(Training(run, data), recorder, data)["status"] == "completed"
    metrics = record.load(recorder.folder).summary["metrics"]
    assert 0 <= metrics["test_accuracy"] <= metrics["best_test_accuracy"] <= 1
