"""From YAML files and overrides to typed settings.

OmegaConf reads, merges and resolves; what leaves this module is a frozen `Run` or `Scale`. A run's settings come from
four places, later ones winning: the defaults of its kind, `configs/<paper>/training.yaml` (the paper's settings), the
`training` part of the scale, and one point of an item's grid. The learning rate, where the point names none, is the one
that the scale's pilot chose for the method.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unlocked.artifact import pilot
from unlocked.artifact.pilot import Cell
from unlocked.errors import SettingError, choose, one_line
from unlocked.papers import PAPERS
from unlocked.papers.run import Paper, PaperScale, Run
from unlocked.settings import Settings, build, dotted, flatten, inside, nest, plain, setting

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
SCALES = ("quick", "reduced", "gpu", "paper")  # that are shipped, in the order in which they are shown


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; `SettingError` with the parser's line if it cannot be read."""
    try:
        values = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError("config file", str(path), one_line(error)) from None
    if not isinstance(values, dict):
        raise SettingError("config file", str(path), "must hold settings by name")
    return values


def from_dotlist(overrides: Iterable[str]) -> dict[str, Any]:
    """`["seeds=[0]", "acid.training.optim.lr=0.05"]` as nested values; `SettingError` for one that has no `=`."""
    merged: Any = OmegaConf.create()
    for text in overrides:
        if "=" not in text:
            raise SettingError("override", text, "must look like key=value, e.g. acid.training.optim.lr=0.05")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([text]))
        except Exception as error:  # whatever the parser of values meets
            raise SettingError("override", text, one_line(error)) from None
    return container(merged)


def container(values: Any) -> dict[str, Any]:
    """Plain values, references resolved; `SettingError` for one that leads nowhere."""
    try:
        resolved = OmegaConf.to_container(values, resolve=True)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "config")
        first, *_ = str(error).strip().splitlines()  # says what is wrong, the others repeat where
        raise SettingError(key, "${...}", first) from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def resolved(entries: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """Entries whose references `${scale.…}` are replaced by the scale's values: what has none costs nothing."""
    known = OmegaConf.create({"scale": scale.plain()})

    @functools.cache
    def found(text: str) -> Any:
        return container(DictConfig({"value": text}, parent=known))["value"]

    def own(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): own(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [own(entry) for entry in value]
        return found(value) if isinstance(value, str) and "${" in value else value

    return {str(key): own(entry) for key, entry in entries.items()}


@dataclass(frozen=True)
class ScaleHead(Settings):
    """What a scale says of everything."""

    name: str = setting("quick", "its name, and that of its file", pattern=r"[a-z0-9_]{1,60}")
    about: str = setting("", "one line for captions and reports")
    seeds: tuple[int, ...] = setting((0,), "of every grid point", least=0, most=2**63 - 1, nonempty=True)
    claim_seeds: tuple[int, ...] = setting(
        (), "of the runs that claims read; none: as `seeds`", least=0, most=2**63 - 1
    )
    more_seeds: tuple[int, ...] = setting(
        (), "besides, of claims that `claim_seeds` left undecided", least=0, most=2**63 - 1
    )
    undecided: tuple[str, ...] = setting((), "these claims, e.g. A7")
    pilot_seeds: tuple[int, ...] = setting((), "of the runs that choose learning rates", least=0, most=2**63 - 1)
    job_minutes: float = setting(30.0, "of work that one job does in one process, about", above=0, most=1e6)

    def check(self) -> None:
        self.refuse_idle("more_seeds", bool(self.undecided), "claims in undecided")
        self.refuse_idle("undecided", bool(self.more_seeds), "more_seeds")

    @property
    def seeds_of_claims(self) -> tuple[int, ...]:
        """Of the runs that every claim reads."""
        return self.claim_seeds or self.seeds

    def seeds_of(self, claim: str) -> tuple[int, ...]:
        """Of the runs that one claim reads."""
        return self.seeds_of_claims + self.more_seeds * (claim in self.undecided)


@dataclass(frozen=True)
class Scale:
    """`configs/scales/<name>.yaml`."""

    head: ScaleHead
    papers: Mapping[str, PaperScale]
    cells: Mapping[str, Sequence[Cell]]  # of the pilot, by paper

    @property
    def name(self) -> str:
        """E.g. `quick`."""
        return self.head.name

    @property
    def about(self) -> str:
        """One line for captions and reports."""
        return self.head.about

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of every grid point."""
        return self.head.seeds

    @property
    def unsettled(self) -> str:
        """A line about methods whose learning rate the pilot has still to choose; empty if there are none."""
        cells = [cell for own in self.cells.values() for cell in own]
        if not (missing := [cell for cell in cells if cell.choice is None or not cell.choice.settled]):
            return ""
        call = f"python3 reproduce.py pilot --config scale={self.name}"
        return f"{len(missing)} of {len(cells)} learning rates of scale {self.name} are not chosen yet: {call}"

    def about_paper(self, paper: str) -> str:
        """One line for captions, the paper's own where it has one."""
        return self.papers[paper].about or self.about

    def plain(self) -> dict[str, Any]:
        """All values, as items refer to them."""
        return plain(self.head) | {key: plain(own) for key, own in self.papers.items()}


def scale_names() -> list[str]:
    """The scales that have a file."""
    return sorted(path.stem for path in (CONFIGS / "scales").glob("*.yaml"))


def load_scale(name: str, overrides: Iterable[str] = ()) -> Scale:
    """The scale `name` with `overrides` (paths in its file, `key=value`) applied."""
    path = CONFIGS / "scales" / f"{choose('scale', name, scale_names())}.yaml"
    values = container(OmegaConf.merge(read_yaml(path), from_dotlist(overrides)))
    chosen = read_yaml(choices) if (choices := pilot_file(name)).is_file() else {}
    papers, cells = {}, {}
    for key, paper in PAPERS.items():
        with inside(key):
            papers[key] = build(paper.scale, values.pop(key, {}))
            cells[key] = pilot.cells(papers[key], chosen.get(key, {}))
    return Scale(build(ScaleHead, values | {"name": name}), papers, cells)


def pilot_file(scale: str) -> Path:
    """What the scale's pilot chose."""
    return CONFIGS / "pilot" / f"{scale}.yaml"


class Bases:
    """The settings of a paper's runs before an item's grid is applied."""

    def __init__(self, paper: Paper, scale: Scale, runtime: Mapping[str, Any]) -> None:
        self.paper, self.scale = paper, scale
        shared = flatten(read_yaml(CONFIGS / paper.key / "training.yaml"))
        shared |= flatten(scale.papers[paper.key].training)
        shared |= {f"runtime.{key}": value for key, value in runtime.items()}
        known = frozenset().union(*(dotted(kind) for kind in paper.kinds))
        for key in shared:
            choose("setting", key, known)
        self.shared = shared | {"scale": scale.name}
        self._of_kind: dict[type[Run], dict[str, Any]] = {}

    def run(self, point: Mapping[str, Any]) -> Run:
        """The run of one grid point, `{"workers": 16, "data.partition": "dirichlet"}`.

        Shared settings go to the kinds that have them; a point may hold no setting that its kind does not have. Without
        a learning rate (none named, or null) the run has its method's own, from the pilot.
        """
        point = {key: value for key, value in point.items() if (key, value) != ("optim.lr", None)}
        kind = self.paper.kind_of({**self.shared, **point})
        if kind not in self._of_kind:
            self._of_kind[kind] = {key: value for key, value in self.shared.items() if key in dotted(kind)}
        run = made(kind, {**self._of_kind[kind], **point})
        return run if "optim.lr" in point else pilot.tuned(run, self.scale.cells[self.paper.key])


def made(kind: type[Run], flat: Mapping[str, Any]) -> Run:
    """A run from dotted settings; one that the kind does not have is refused."""
    for key, value in flat.items():
        if key not in dotted(kind):
            raise SettingError(key, value, f"is no setting of {kind.__name__} ({first_line(kind)})")
    return build(kind, nest(flat))


def first_line(kind: type) -> str:
    """What a class is, in a few words."""
    return str(kind.__doc__).splitlines()[0].rstrip(".")


def run_from(values: Mapping[str, Any]) -> Run:
    """A run from nested or dotted settings with the key `paper`."""
    flat = flatten(values)
    paper = PAPERS[choose("paper", flat.pop("paper", None), PAPERS)]
    return made(paper.kind_of(flat), flat)


def run_from_file(path: Path, changes: Iterable[str] = ()) -> Run:
    """A run from a file, e.g. a record's `config.yaml`, with `changes` (`optim.lr=0.1`) to its settings."""
    return run_from(container(OmegaConf.merge(read_yaml(path), from_dotlist(changes))))
