"""The simulator: agreement of executions, seeds, what is conserved, stops, divergence, measurements."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters
from trainings import advance_all, history

from unlocked.errors import SettingError
from unlocked.gossip import momentum, simulator, topology
from unlocked.gossip.reference import replay
from unlocked.gossip.schedule import GRADIENT
from unlocked.papers.acid import common, gossip

SMALL_RESNET = {"model.name": "resnet18", "model.width": 0.0625}
EXACT, RELEASED, BASELINE = {"dynamics": "exact"}, {"dynamics": "released"}, {"method": "baseline"}


def final(training: Any) -> tuple[Tensor, Tensor]:
    """Every worker's x and x~ at the end, mixed up to the last event."""
    engine, end = advance_all(training), float(training.events.time[-1])
    x, x_tilde = zip(*(engine.now(i, end) for i in range(len(engine.x))), strict=True)
    return torch.stack(x), torch.stack(x_tilde)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("sgd_momentum", [0.0, 0.9])
@pytest.mark.parametrize("method", [EXACT, RELEASED, BASELINE], ids=lambda m: str(*m.values()))
def test_engine_is_replay(tiny_run: Any, train_of: Any, sgd_momentum: float, method: dict[str, Any]) -> None:
    """The engine's own directions, replayed one by one, lead to the engine's own end in every worker."""
    settings = {"optim.momentum": sgd_momentum, "optim.schedule": "constant", "runtime.execution": "loop"}
    training = train_of(run := tiny_run(settings | method, graph="star"))
    engine, events, replayed = training.engine, training.events, []
    start, nothing = engine.x.clone(), np.empty(0, np.int64)
    for k, (kind, t, i, j) in enumerate(zip(events.kind, events.time, events.i, events.j, strict=True)):
        if kind == GRADIENT:
            engine.execute(events, np.array([k]), nothing, training.source)
            replayed.append(("gradient", t, i, engine.m[i].clone()))
        else:
            engine.execute(events, nothing, np.array([k]), training.source)
            replayed.append(("communication", t, i, int(j)))
    x, x_tilde = replay(replayed, start, engine.constants, run.optim.lr, gossip.dynamics_of(run))
    assert (x - start).abs().max() > 1e-2
    torch.testing.assert_close(engine.x, x, rtol=1e-11, atol=1e-12)
    if engine.constants.momentum:
        torch.testing.assert_close(engine.x_tilde, x_tilde, rtol=1e-11, atol=1e-12)
    by_levels = advance_all(train_of(run))  # the same events, executed together where they do not touch
    torch.testing.assert_close(by_levels.x, engine.x, rtol=1e-11, atol=1e-12)


CASES = [
    (16, graph, method, read)
    for graph in ("ring", "exponential", "complete")
    for method in (EXACT, BASELINE, RELEASED)
    for read in ("event", "start")
]
CASES += [(64, "complete", RELEASED, "start"), (64, "ring", EXACT, "event")]


@pytest.mark.parametrize("execution", ["loop", "batched"])
@pytest.mark.parametrize("workers", [2, 4])
def test_no_gradient_is_longer_than_the_clip(tiny_run: Any, train_of: Any, workers: int, execution: str) -> None:
    """Whatever the execution; with a clip that none reaches nothing changes, to the last bit."""
    settings = {"graph": "path", "workers": workers, "runtime.execution": execution}
    plain, loose, tight = (
        train_of(tiny_run(settings, **{"optim.clip": clip, "optim.weight_decay": 0.0, "optim.momentum": 0.0}))
        for clip in (None, 1e6, 0.3)
    )
    assert torch.equal(advance_all(plain).x, advance_all(loose).x)
    longest = advance_all(tight).m.norm(dim=1)  # without SGD momentum: every worker's last gradient
    assert plain.engine.m.norm(dim=1).min() > 0.3
    torch.testing.assert_close(longest, torch.full((workers,), 0.3), rtol=1e-4, atol=0)


def test_strength_is_a_factor_on_chi1(tiny_run: Any, train_of: Any) -> None:
    """In trainings and studies alike; a weaker momentum mixes more and averages the auxiliary variable less."""
    for study in ("training", "averaging", "quadratic"):
        run = tiny_run(study=study, strength=0.25, workers=8)
        chi1, chi2 = topology.chi(topology.build("ring", 8))
        assert train_of(run).engine.constants == momentum.Constants.accelerated(0.25 * chi1, chi2)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("width", [1.0, 0.25], ids=["long vectors", "short vectors"])
@pytest.mark.parametrize(("workers", "graph", "method", "read"), CASES)
def test_executions_agree(
    tiny_run: Any, train_of: Any, workers: int, graph: str, method: dict[str, Any], read: str, width: float
) -> None:
    """Levels one worker at a time and levels batched end in the same x and x~."""
    settings = {"graph": graph, "gradient_read": read, "workers": workers, "model.width": width} | method
    loop, batched = (final(train_of(tiny_run(settings, **{"runtime.execution": way}))) for way in ("loop", "batched"))
    assert loop[0].std(0).max() > 1e-4  # workers differ: there is something to agree on
    for mine, reference in zip(batched, loop, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "batched"),
    [({}, False), ({"workers": 32}, True), ({"workers": 32, "model.name": "conv"}, False),
     ({"workers": 32, "model.width": 8.0}, False), ({"workers": 32, **SMALL_RESNET}, False)],
)  # fmt: skip
def test_what_runs_batched(tiny_run: Any, train_of: Any, changes: dict[str, Any], batched: bool) -> None:
    """On CPU, small networks of linear layers, and many of them."""
    assert train_of(tiny_run(changes)).engine.batched == batched


@pytest.mark.usefixtures("double")
def test_what_is_compared_differs(tiny_run: Any, train_of: Any) -> None:
    plain = final(train_of(tiny_run()))[0]
    for change in (BASELINE, RELEASED, {"graph": "complete"}, {"rate": 2.0}, {"gradient_read": "start"}):
        assert (final(train_of(tiny_run(change)))[0] - plain).abs().max() > 1e-6, change


@pytest.mark.parametrize("method", ["acid", "baseline", "allreduce"])
def test_same_seed_same_bits(tiny_run: Any, train_of: Any, method: str) -> None:
    ends = [advance_all(train_of(tiny_run(method=method, seed=seed))).x for seed in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("settings", [{}, {"pairing": "availability", "clock.law": "gamma", "clock.latency": 0.02}])
def test_methods_share_events_batches_and_start(tiny_run: Any, train_of: Any, settings: dict[str, Any]) -> None:
    """Common random numbers: nothing that is drawn depends on the method; all-reduce meets the same durations."""
    first, second = (train_of(tiny_run(settings, method=m)) for m in ("acid", "baseline"))
    clock = {name: value for name, value in settings.items() if name == "clock.law"}
    third = train_of(tiny_run(clock, method="allreduce"))
    for name in ("kind", "time", "i", "j"):
        np.testing.assert_array_equal(getattr(first.events, name), getattr(second.events, name))
    ends = [first.events.time[(first.events.kind == GRADIENT) & (first.events.i == w)][0] for w in range(4)]
    assert third.ends[1] == pytest.approx(max(ends))
    assert torch.equal(first.engine.x, second.engine.x)
    assert torch.equal(first.engine.x[0], third.x)
    for asked in ((0, 0), (3, 17), (2, 400)):
        mine, *others = (training.streams.indices(*asked) for training in (first, second, third))
        for other in others:
            np.testing.assert_array_equal(mine, other)


def test_streams_cover_the_data_evenly(tiny_run: Any, train_of: Any) -> None:
    """A worker sees every image once per pass, workers see different orders, and steps can be asked in any order."""
    training = train_of(tiny_run({"optim.batch_size": 10}))
    streams, size = training.streams, len(training.data.train)
    pass_two = np.concatenate([streams.indices(1, step) for step in range(2 * size // 10 + 1)])
    assert sorted(pass_two[:size]) == list(range(size))
    assert sorted(pass_two[size : 2 * size]) == list(range(size))
    assert not np.array_equal(streams.indices(0, 0), streams.indices(1, 0))
    np.testing.assert_array_equal(streams.indices(1, 5), pass_two[50:60])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("execution", ["loop", "batched"])
def test_without_learning_the_sums_stay(tiny_run: Any, train_of: Any, execution: str) -> None:
    """With learning rate 0 the sums over workers of x and x~ stay, the workers come together; released drifts."""
    drifts = {}
    for dynamics in ("exact", "released"):
        training = train_of(tiny_run({"dynamics": dynamics, "runtime.execution": execution, "workers": 8}))
        engine = training.engine
        engine.sgd.rates[:] = [0.0] * len(engine.sgd.rates)
        spread = torch.randn(engine.x.shape, generator=torch.Generator().manual_seed(0))
        engine.x += spread
        engine.x_tilde += spread.flip(0)  # another order, the same sum
        before = engine.x.sum(0)
        ends = final(training)
        drifts[dynamics] = max(float((v.sum(0) - before).abs().max()) for v in ends)
        assert ends[0].std(0).max() < 0.5 * spread.std(0).min()
    assert drifts["exact"] < 1e-11
    assert drifts["released"] > 1e-4


@pytest.mark.usefixtures("double")
def test_consensus_by_hand(tiny_run: Any, train_of: Any) -> None:
    """The measured mean and distances are those of the workers mixed to the moment, and looking changes nothing."""
    training = train_of(tiny_run(workers=8))
    engine = advance_all(training)
    time = float(training.events.time[-1]) + 0.7
    kept = engine.x.clone(), engine.x_tilde.clone()
    mean, measured = simulator.consensus(engine, time)
    assert torch.equal(engine.x, kept[0])
    assert torch.equal(engine.x_tilde, kept[1])
    x, x_tilde = kept[0].clone(), kept[1]
    momentum.mix_(x, x_tilde, engine.constants.eta, torch.from_numpy(time - engine.last)[:, None])
    torch.testing.assert_close(mean, x.mean(0))
    for part, rows in (("", x), ("_auxiliary", x_tilde), ("_stored", kept[0])):
        distance = measured[f"consensus_distance{part}"]
        assert distance == pytest.approx(float((rows - rows.mean(0)).square().sum()) / 8, rel=1e-9)
        assert distance > 0


def test_mean_of_independent_starts_are_short(tiny_run: Any, train_of: Any) -> None:
    """The average of n independent draws has weights about 1/sqrt(n) as long as one draw; all workers start there."""
    lengths = {}
    for init in ("common", "mean_of_independent"):
        training = train_of(tiny_run(init=init, workers=16))
        x, model = training.engine.x, training.measures.evaluator.model
        vector_to_parameters(x[0], model.parameters())
        lengths[init] = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim > 1]).norm()
        assert torch.equal(x, x[:1].expand_as(x))
        assert torch.equal(x, training.engine.x_tilde)
        built = common.build_model(training.run, training.data)
        assert torch.equal(x[0], common.initial_parameters(training.run, training.data, built))
    assert lengths["mean_of_independent"] / lengths["common"] == pytest.approx(1 / 4, rel=0.1)


RESUMED = {
    "loop": {"runtime.execution": "loop"},
    "batched": {"runtime.execution": "batched", "workers": 16, "optim.epochs": 6},
    "released": {"runtime.execution": "loop", "dynamics": "released"},
    "start": {"gradient_read": "start", "method": "baseline"},
    "batch_norm": {"batch_norm": "average", **SMALL_RESNET},
    "allreduce": {"method": "allreduce", "optim.epochs": 6},
    "quadratic": {"study": "quadratic", "quadratic.horizon": 20.0, "workers": 8},
    "averaging": {"study": "averaging", "quadratic.horizon": 20.0, "workers": 8},
}


@pytest.mark.parametrize("case", RESUMED)
def test_an_interrupted_run_ends_bit_identical(tiny_run: Any, train_of: Any, case: str) -> None:
    """Stopped after 3 steps of its second span and continued, a run has the same history and counts as in one go."""
    run, file = tiny_run(RESUMED[case]), io.BytesIO()
    whole, training, fresh = (train_of(run) for _ in range(3))
    measured = [training.measure(0)]
    for _ in training.advance(0, 0):
        pass
    measured.append(training.measure(1))
    for _ in itertools.islice(training.advance(1, 0), 3):
        pass
    torch.save(training.state(), file)
    file.seek(0)
    fresh.restore(torch.load(file, weights_only=True))
    for _ in fresh.advance(1, 3):
        pass
    measured += [fresh.measure(2), *history(fresh, 2)]
    assert [*measured, fresh.counts()] == [*history(whole), whole.counts()]


@pytest.mark.parametrize("method", ["acid", "baseline", "allreduce"])
def test_a_diverging_run_is_noticed(tiny_run: Any, train_of: Any, method: str) -> None:
    """A learning rate far too large: the loss is not finite, and the counts are of what took place."""
    training = train_of(tiny_run({"optim.lr": 1e5, "optim.schedule": "constant", "method": method}))
    assert training.healthy()
    for _ in training.advance(0, 0):
        pass
    assert not training.healthy()
    counts = training.counts()
    assert 0 < counts["gradients"] < training.run.total_gradients
    assert sum(counts["gradients_per_worker"]) == counts["gradients"]


def test_batch_norm_modes(tiny_run: Any, train_of: Any) -> None:
    """Training is the same, the averaged model's loss depends on its statistics; average: the mean of all buffers,
    worker0: the first worker's.
    """
    ends = {}
    for mode in ("recalibrate", "average", "worker0"):
        training = train_of(tiny_run({"batch_norm": mode, "evaluation.recalibration_batches": 5, **SMALL_RESNET}))
        ends[mode] = history(training)[-1].metrics
        buffers, evaluator = training.networks.statistics, training.measures.evaluator
        name = next(n for n in buffers[0] if n.endswith("running_mean"))
        assert not torch.equal(buffers[0][name], buffers[1][name])
        evaluator.averaged(training.engine.x[0].clone(), buffers)
        own = dict(evaluator.model.named_buffers())[name]
        assert torch.equal(own, buffers[0][name]) == (mode == "worker0")
        if mode == "average":
            torch.testing.assert_close(own, torch.stack([b[name] for b in buffers]).mean(0))
    for metric in ("train_loss", "consensus_distance", "worker_test_accuracy_mean"):
        assert len({metrics[metric] for metrics in ends.values()}) == 1
    losses = {metrics["test_loss"] for metrics in ends.values()}
    assert len(losses) == 3
    assert np.isfinite(list(losses)).all()


def test_the_history_of_a_run(tiny_run: Any, train_of: Any) -> None:
    """Counts, epochs and workers' accuracies agree with each other."""
    training = train_of(tiny_run({"evaluation.points": 4, "evaluation.workers": "always"}))
    measured, counts = history(training), training.counts()
    assert [m.step for m in measured] == [0, 44, 88, 132, 176]
    assert [m.epoch for m in measured] == pytest.approx([m.step * 8 / 1437 for m in measured])
    assert (np.diff([m.virtual_time for m in measured]) > 0).all()
    metrics = measured[-1].metrics
    workers = metrics["worker_test_accuracy"]
    assert len(workers) == 4
    assert metrics["worker_test_accuracy_mean"] == pytest.approx(np.mean(workers))
    assert (metrics["worker_test_accuracy_min"], metrics["worker_test_accuracy_max"]) == (min(workers), max(workers))
    assert metrics["virtual_seconds"] == pytest.approx(0.1 * measured[-1].virtual_time)
    assert sum(counts["gradients_per_worker"]) == counts["gradients"] == 176
    assert sum(c for _, _, c in counts["communications_per_edge"]) == counts["communications"] > 0
    edges = {tuple(sorted(e)) for e in topology.build("ring", 4).edges}
    assert {(i, j) for i, j, _ in counts["communications_per_edge"]} <= edges


def test_workers_on_some_images(tiny_run: Any, train_of: Any) -> None:
    """Each on a draw of its own, which the average's measures know nothing of."""
    drawn = {"evaluation.worker_images": 8}
    one, other = (history(train_of(tiny_run(settings)))[-1].metrics for settings in ({}, drawn))
    assert {round(8 * accuracy, 9) % 1 for accuracy in other["worker_test_accuracy"]} == {0}
    assert len(set(other["worker_test_accuracy"])) > 1  # on the same images the four would agree
    shared = [name for name in one if not name.startswith("worker")]
    assert [one[name] for name in shared] == [other[name] for name in shared]


@pytest.mark.parametrize("method", ["acid", "allreduce"])
def test_workers_are_not_measured_when_not_wanted(tiny_run: Any, train_of: Any, method: str) -> None:
    """evaluation.workers = never leaves them out; `final`, the default, measures them at the end."""
    measured = history(train_of(tiny_run({"evaluation.workers": "never", "method": method})))
    assert not [name for m in measured for name in m.metrics if name.startswith("worker")]
    assert measured[-1].metrics["train_loss"] < 2.31
    measured = history(train_of(tiny_run(method=method)))
    assert "worker_test_accuracy" not in measured[-2].metrics
    assert ("worker_test_accuracy" in measured[-1].metrics) == (method == "acid")


@pytest.mark.parametrize("method", ["acid", "baseline", "allreduce"])
def test_training_learns(tiny_run: Any, train_of: Any, method: str) -> None:
    assert history(train_of(tiny_run({"method": method, "optim.epochs": 3})))[-1].metrics["test_accuracy"] > 0.6


def test_a_run_with_a_wrong_clock_is_refused(tiny_run: Any) -> None:
    """The run asks the clock, and refuses links that take time where averagings take none."""
    for changes in ({"clock.slow_workers": 5}, {"clock.latency": 0.1}, {"clock.bandwidth": 1e6}):
        with pytest.raises(SettingError, match=next(iter(changes)).removeprefix("clock.")) as error:
            tiny_run(changes)
        assert "\n" not in str(error.value)
    assert tiny_run({"clock.latency": 0.1, "pairing": "availability"}).clock.latency == 0.1


def test_a_global_count_lets_a_slow_workers_rate_fall_too(tiny_run: Any, train_of: Any) -> None:
    """By its own count a worker slowed fourfold has not come to the end of the schedule when the run ends."""
    slow = {"clock.slow_workers": 1, "clock.slow_factor": 4.0, "optim.warmup_epochs": 0, "optim.epochs": 2}
    last = {}
    for count in ("own", "global"):
        training = train_of(run := tiny_run(slow, schedule_count=count))
        engine = advance_all(training)
        last[count] = [engine.sgd.rate(i, int(steps) - 1) for i, steps in enumerate(engine.steps)]
    lowest = common.learning_rate(run, run.total_gradients - 1)
    assert last["global"] == pytest.approx([lowest] * 4)
    assert last["own"][0] == pytest.approx(100 * lowest)
    order = training.events.i[training.events.kind == GRADIENT]
    for step in (0, 50, 200):
        worker = int(order[step])
        own = int((order[:step] == worker).sum())
        assert engine.sgd.rate(worker, own) == common.learning_rate(run, step)


def test_batch_norm_cannot_run_batched(tiny_run: Any, train_of: Any) -> None:
    with pytest.raises(SettingError, match=r"runtime.execution = 'batched': needs a network without BatchNorm"):
        train_of(tiny_run({"model.name": "resnet18", "runtime.execution": "batched", "workers": 3}))
