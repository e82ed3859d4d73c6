"""Which learning rate a run has that names none: its method's own, which a pilot chose before the seeds that count.

A scale's `pilot` names regimes and methods. Every pair of them is a cell: a few runs at each rate of a grid, and a rule
that picks one. The choice is a file, `configs/pilot/<scale>.yaml`; until it is there, runs have the scale's own rate.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unlocked.errors import SettingError, choose
from unlocked.papers.run import PaperScale, PilotRegime, Run
from unlocked.settings import Settings, build, flatten, inside, setting

RULE = (
    "The highest mean test accuracy of the average over the pilot's seeds; a rate at which a run diverged is out. The "
    "best must not lie at an end of the grid: else the grid is extended there."
)


@dataclass(frozen=True)
class Choice(Settings):
    """What the pilot found for one cell."""

    lr: float | None = setting(None, "the rate that was chosen", above=0)
    settled: bool = setting(False, "whether all runs are there and the best is not at an end of the grid")
    grid: dict[str, Any] = setting(
        None, "mean accuracy in percent by rate; null: diverged, or still to run", empty=dict
    )


@dataclass(frozen=True)
class Cell:
    """A method in a regime. `fits`: the values of settings, several allowed, that a run must have to belong to it."""

    name: str
    point: Mapping[str, Any]  # settings of its runs but for rate and seed
    fits: Mapping[str, tuple[Any, ...]]
    rates: tuple[float, ...]
    choice: Choice | None
    seeds: int = 1  # how many of the pilot's

    def has(self, settings: Mapping[str, Any]) -> bool:
        """Whether a run with these settings, by dotted name, belongs to it. None: a setting that the run lacks."""
        return all(settings.get(key) in allowed for key, allowed in self.fits.items())

    def points(self, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The grid points of its runs, seeds innermost."""
        for rate, seed in itertools.product(self.rates, seeds[: self.seeds]):
            yield {**self.point, "optim.lr": rate, "seed": seed}


def cells(own: PaperScale, chosen: Mapping[str, Any]) -> list[Cell]:
    """The cells of a paper's pilot, in the order in which they are tried; `chosen`: the paper's part of the file."""
    regimes = {name: build(PilotRegime, values) for name, values in own.pilot.regimes.items()}
    return [
        cell_of(own, name, method, regime, chosen)
        for name, regime in regimes.items()
        for method in regime.methods or own.pilot.methods
    ]


def cell_of(own: PaperScale, called: str, method: str, regime: PilotRegime, chosen: Mapping[str, Any]) -> Cell:
    """A method in the regime that is `called` so, with what the file says of it."""
    name, settings = f"{called}/{method}", regime_of(own, called)
    values = flatten(own.pilot.methods[choose("pilot.methods", method, own.pilot.methods)])
    allowed = {key: as_tuple(value) for key, value in values.items()}
    fits = {key: (settings[key],) for key in own.pilot.by if key in settings} | allowed
    point = {**settings, **{key: values[0] for key, values in allowed.items()}}
    with inside(name):
        choice = build(Choice, chosen[name]) if name in chosen else None
    rates = {*(regime.rates or own.pilot.rates), *map(float, choice.grid if choice else ())}
    return Cell(name, point, fits, tuple(sorted(rates)), choice, regime.seeds)


def regime_of(own: PaperScale, name: str) -> dict[str, Any]:
    """The settings of a regime, by dotted name."""
    return flatten(own.regimes[choose("regime", name, own.regimes)])


def as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def tuned(run: Run, of_paper: Iterable[Cell]) -> Run:
    """The run with the rate that was chosen for the first cell that has it; as it is where there is none."""
    settings = flatten(run.identity())
    cell = next((cell for cell in of_paper if cell.choice and cell.has(settings)), None)
    if cell is None or cell.choice is None or cell.choice.lr is None or "optim.lr" not in settings:
        return run
    optim: Any = getattr(run, "optim")  # noqa: B009 - kinds of run that have it
    return replace(run, **{"optim": replace(optim, lr=cell.choice.lr)})


def check_seeds(pilot: Iterable[int], claims: Iterable[int]) -> None:
    """What a rate was chosen by must have no part in what is claimed with it."""
    if shared := sorted({*pilot} & {*claims}):
        raise SettingError("pilot_seeds", shared, "must have none of the seeds that items and claims use")
