"""The papers: a registry. The artifact around them knows no paper by name; it asks here."""

from __future__ import annotations

from unlocked.papers.acid.paper import PAPER as ACID
from unlocked.papers.forward_gradient.paper import PAPER as FORWARD_GRADIENT
from unlocked.papers.run import Paper

PAPERS: dict[str, Paper] = {paper.key: paper for paper in (ACID, FORWARD_GRADIENT)}
