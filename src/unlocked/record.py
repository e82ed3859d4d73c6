"""Records of finished runs, for anybody's analysis: `load` reads one, `load_all` makes a table of many."""

from unlocked.artifact.record import Record, load, load_all

__all__ = ["Record", "load", "load_all"]
