"""Training by forward gradients: what is trained and what is not, plain torch's own steps, seeds, stops, errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from comparison import assert_survives_stops
from papers.forward_gradient.runs import advance, digits, fresh, parameters, recorded, tiny
from unlocked import fingerprint
from unlocked.artifact import config
from unlocked.errors import SettingError
from unlocked.papers import PAPERS
from unlocked.papers.forward_gradient import network
from unlocked.vision import networks
from unlocked.vision.data import Dataset, Split

LAST = "auxiliaries.7."


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
def test_each_cell_trains_its_part_and_no_other(target: str, guess: str, space: str, trains_heads: bool) -> None:
    """All blocks and the classifier are trained; other auxiliary nets by local losses alone, guess nets never."""
    known = vars(tiny(target=target, guess=guess))
    more = {key: value for key, value in (("space", space), ("auxiliary", "cnn")) if key in known}
    one = fresh(target=target, guess=guess, **more)
    before, after = parameters(one), parameters(advance(one, 3))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    still = set(before) - moved
    assert not {name for name in still if name.startswith(("blocks.", LAST))}
    heads = {name for name in moved | still if name.startswith("auxiliaries.") and not name.startswith(LAST)}
    # decay alone would move a weight, so bits that stay say that there was none
    assert heads <= (moved if trains_heads else still)
    guesses = {name for name in moved | still if name.startswith("guess_auxiliaries.")}
    assert bool(guesses) == (target == "local" and guess in ("ntk", "fixed_ntk"))
    if guess == "fixed_ntk":
        assert guesses <= still


def test_frozen_blocks_train_the_last_block_and_the_classifier_as_backpropagation_does() -> None:
    """Their first step is that of backpropagation; everything else stays, without decay."""
    frozen, whole = (fresh(target="global", guess=guess) for guess in ("frozen", "global"))
    before = parameters(frozen)
    for one in (frozen, whole):
        one.step(0)
    trained = parameters(whole)
    for name, now in parameters(frozen).items():
        right = trained[name] if name.startswith(("blocks.7.", LAST)) else before[name]
        torch.testing.assert_close(now, right, rtol=1e-5, atol=1e-7, msg=name)
    metrics = frozen.measure(1).metrics
    assert len(metrics["block_train_accuracy"]) == 8
    assert "cosine" not in metrics


def test_ntk_nets_are_drawn_anew_every_step_from_the_seed() -> None:
    """Two steps, two draws; the same step of another training, the same draw; the classifier is not drawn anew."""
    first, second = (fresh(guess="ntk", auxiliary="linear") for _ in range(2))
    drawn = []
    for number in range(2):
        first.step(number)
        drawn.append(first.net.auxiliaries[0].state_dict()["3.weight"].clone())
    assert not torch.equal(*drawn)
    second.step(1)
    assert torch.equal(second.net.auxiliaries[0].state_dict()["3.weight"], drawn[1])


def test_backpropagation_is_a_plain_torch_loop() -> None:
    """The cell global/global takes the steps that autograd and torch's SGD take on the same batches.

    SGD keeps a buffer for exactly the parameters that got a gradient.
    """
    one = fresh(target="global", guess="global")
    net = copy.deepcopy(one.net)
    model = nn.Sequential(*net.blocks, net.auxiliaries[-1]).train()
    optimiser = torch.optim.SGD(model.parameters(), one.run.optim.lr, momentum=0.9, weight_decay=5e-4)
    for number in range(5):
        images, labels = one.batch(number)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    advance(one, 5)
    ours = nn.Sequential(*one.net.blocks, one.net.auxiliaries[-1])
    for (name, expected), found in zip(model.state_dict().items(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)
    assert set(one.buffers) == {name for name in one.named if name.startswith(("blocks.", LAST))}


def test_methods_see_the_same_batches_and_start() -> None:
    """Common random numbers: with one seed all methods share data order and initial blocks, with two they do not."""
    one, two, other = fresh(guess="random"), fresh(guess="local"), fresh(guess="local", seed=1)
    for number in (0, 7):
        assert torch.equal(one.batch(number)[0], two.batch(number)[0])
        assert not torch.equal(one.batch(number)[0], other.batch(number)[0])
    blocks = [t.net.blocks.state_dict() for t in (one, two, other)]
    assert all(torch.equal(a, b) for a, b in zip(blocks[0].values(), blocks[1].values(), strict=True))
    assert not torch.equal(blocks[0]["0.0.0.weight"], blocks[2]["0.0.0.weight"])


def test_schedules() -> None:
    """Steps after so many epochs, or so many hundredths of the run."""
    long = {"optim__epochs": 20, "optim__step_every": 6, "optim__step_gamma": 0.5}
    counted = {}
    for schedule in ("step", "proportional", "constant"):
        one = fresh(optim__schedule=schedule, **long)
        counted[schedule] = [
            one.factor(number) for number in (0, one.total * 59 // 1000, one.total * 3 // 10, one.total - 1)
        ]
    assert counted == {"step": [1, 1, 0.5, 0.125], "proportional": [1, 1, 0.5**5, 0.5**16], "constant": [1] * 4}


def test_details_of_the_released_code() -> None:
    """They are those of the paper's own scale, change what a run is, and train."""
    paper = config.Bases(PAPERS["forward_gradient"], config.load_scale("paper"), {}).run({}).model
    assert (paper.init, paper.auxiliaries) == ("as_released", "as_released")
    usual, released = (
        {"guess": "ntk", "auxiliary": "mlp", "model__init": name, "model__auxiliaries": name}
        for name in networks.VARIANTS
    )
    assert tiny(**usual).id != tiny(**released).id
    one = advance(fresh(**released), 2)
    assert one.healthy()
    assert (one.net.auxiliaries[-1][-1].bias != 0.01).any()
    assert (one.net.auxiliaries[0][-1].bias == torch.tensor(0.01)).all()  # redrawn, not trained


def test_an_epoch_shows_every_image_once() -> None:
    """96 images in six batches of 16, another order in the next epoch."""
    batches = fresh().batch
    epochs = [torch.cat([batches(6 * epoch + k)[0] for k in range(6)]).flatten(1) for epoch in range(2)]
    assert not torch.equal(*epochs)
    assert sorted(map(tuple, epochs[0].tolist())) == sorted(map(tuple, epochs[1].tolist()))


@pytest.mark.parametrize(("target", "guess"), [("global", "ntk"), ("local", "random"), ("global", "fixed_ntk")])
def test_measuring_changes_nothing(target: str, guess: str) -> None:
    """Neither parameters, buffers, modes nor torch's generator know whether a training was measured."""
    one = advance(fresh(target=target, guess=guess, auxiliary="cnn"), 2)
    state = copy.deepcopy(one.net.state_dict())
    modes = [m.training for m in one.net.modules()]
    generator = torch.get_rng_state()
    one.measure(1)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), one.net.state_dict().values(), strict=True))
    assert modes == [m.training for m in one.net.modules()]
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize("mode", ["projection", "forward_mode"])
def test_metrics_of_every_block(mode: str) -> None:
    """Accuracy and loss by block, the last being the net's; measures of all blocks but the last."""
    one = fresh(space="weight", mode=mode, measure__tensors=True)
    assert "train_loss" not in one.measure(0).metrics
    metrics = advance(one, 3).measure(1).metrics
    for part in ("train", "test"):
        for kind in ("accuracy", "loss"):
            assert len(metrics[f"block_{part}_{kind}"]) == 8
            assert metrics[f"block_{part}_{kind}"][-1] == metrics[f"{part}_{kind}"]
    for name in ("cosine", "norm_ratio", "target_norm", "guess_norm", "coefficient_q50", "estimate_cosine"):
        assert len(metrics[name]) == 7
        assert np.isfinite(metrics[name]).all()
    assert any(name.startswith("cosine/") for name in metrics)
    assert -1 <= metrics["net_estimate_cosine"] <= 1


def test_the_best_accuracy_is_that_of_all_evaluations() -> None:
    one = fresh()
    one.best = 0.999
    metrics = one.measure(0).metrics
    assert metrics["best_test_accuracy"] == 0.999 > metrics["test_accuracy"]


def test_accuracy_weighs_samples_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches of an evaluation do not matter, uneven ones included."""
    run, data = tiny(), digits()
    scores = network.tested(network.build(run, data), run, data)
    whole = network.accuracy_and_loss(scores, data.test)
    monkeypatch.setattr(network, "EVALUATION_BATCH", 7)
    for one, other in zip(whole, network.accuracy_and_loss(scores, data.test), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    images, labels = data.test.batch(range(50))
    expected = (scores(images)[-1].argmax(1) == labels).double().mean()
    assert whole[0][-1] == pytest.approx(float(expected))


@pytest.mark.parametrize(("target", "guess"), [("global", "ntk"), ("global", "random"), ("local", "fixed_ntk")])
def test_a_stopped_run_continues_bit_by_bit(tmp_path: Path, target: str, guess: str) -> None:
    assert_survives_stops(tiny(target=target, guess=guess, optim__epochs=2), digits(), tmp_path)


def test_divergence_is_a_result(tmp_path: Path) -> None:
    """A learning rate that blows up ends in a record that says so."""
    run = tiny(optim__lr=1e6, optim__momentum=1.0, guess="random", space="weight")
    assert recorded(run, tmp_path).summary["status"] == "diverged"


def test_trainers_have_a_fingerprint() -> None:
    """Every kind of run names a class whose code is followed down to the estimator, and not to the items."""
    for kind in PAPERS["forward_gradient"].kinds:
        modules = set(fingerprint.modules(kind.trainer.rpartition(".")[0]))
        assert {f"unlocked.forward_gradient.{part}" for part in ("estimator", "guesses")} <= modules
        assert "unlocked.papers.forward_gradient.figures" not in modules
        assert len(fingerprint.training(kind.trainer)) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auxiliary": "tree"}, "auxiliary = 'tree': must be one of"),
        ({"study": "none"}, "study = 'none': must be one of"),
        ({"model__name": "resnet18"}, "model.name = 'resnet18': must be one of resnet18_8"),
        ({"model__width": 0.001}, "width = 0.001: must leave at least one of 64 channels"),
        ({"target": "local", "guess": "global"}, "only stands with target = global"),
        ({"guess": "global", "mode": "forward_mode"}, "is no setting of Backpropagation"),
        ({"guess": "global", "space": "weight"}, "is no setting of Backpropagation"),
        ({"guess": "local", "tangents": 3}, "is no setting of HeadGuess"),
        ({"measure__batches": 99}, "images of 96"),
        ({"optim__batch_size": 97}, "images to train"),
        ({"study": "auxiliary_cost", "optim__batch_size": 97}, "images to train"),
        ({"runtime__precision": "half"}, "runtime.precision = "),
        ({"runtime__precision": "bfloat16", "mode": "forward_mode"}, "runtime.precision = "),
        ({"runtime__precision": "bfloat16", "study": "batchnorm_coupling"}, "runtime.precision = "),
        ({"runtime__compile": True, "mode": "forward_mode"}, "runtime.compile = "),
        ({"runtime__compile": True, "space": "weight", "averaged": False}, "runtime.compile = "),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        tiny(**settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


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
    """The paper scale's own config at full width takes two steps and leaves a record, on images made of noise."""
    small = {
        "data.train_limit": 8, "data.test_limit": 2, "optim.batch_size": 4, "optim.epochs": 1, "evaluation.points": 1,
        "measure.batches": 1, "measure.batch_size": 4,
    }  # fmt: skip
    run = config.Bases(PAPERS["forward_gradient"], config.load_scale("paper"), {"wandb": "disabled"}).run(small | cell)
    assert run.model.width == 1
    pixels = torch.randint(256, (10, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    labels, classes = torch.arange(10), run.data.shape["classes"]
    train, test = (
        Split(pixels[part], labels[part], (0.5,) * 3, (0.29,) * 3, "crop_flip", 4) for part in (slice(8), slice(8, 10))
    )
    data = Dataset(run.data.name, train, test, classes, 3, 32, "noise", "none")
    metrics = recorded(run, tmp_path, data).summary["metrics"]
    assert 0 <= metrics["test_accuracy"] <= metrics["best_test_accuracy"] <= 1
