"""Forward gradients with local guesses: "Can Forward Gradient Match Backpropagation?" (ICML 2023).

Stands in `train` on the road configs -> plan -> train -> record -> item. `estimate` is the paper's method in one
function, `project` its algebra.
"""

from unlocked.forward_gradient.estimator import Estimate, estimate
from unlocked.forward_gradient.projection import project

__all__ = ["Estimate", "estimate", "project"]
