"""Forward gradients with local guesses: "Can Forward Gradient Match Backpropagation?" (ICML 2023).

`Method` says what is estimated, `estimate` does it for one batch, `ForwardGradient` fills `.grad` with it, and
`reference.estimate` is the same in its obvious form. Names are imported when they are first used, so that settings
can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlocked.forward_gradient.estimator import Estimate, estimate
    from unlocked.forward_gradient.guesses import Guess
    from unlocked.forward_gradient.method import Method
    from unlocked.forward_gradient.module import ForwardGradient, split
    from unlocked.forward_gradient.projection import project
    from unlocked.forward_gradient.targets import Target

__all__ = ["Estimate", "ForwardGradient", "Guess", "Method", "Target", "estimate", "project", "split"]

_PLACES = {
    "Estimate": "estimator", "estimate": "estimator", "ForwardGradient": "module", "Guess": "guesses",
    "Method": "method", "Target": "targets", "project": "projection", "split": "module",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
