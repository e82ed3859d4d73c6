"""`Method`: one object says which cell of the table of targets, guesses and spaces an estimate is."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

from unlocked.errors import SettingError, choose
from unlocked.forward_gradient import guesses, targets
from unlocked.settings import Rule, Settings, setting

SPACES = ("weight", "activity")
MODES = ("projection", "forward_mode")
PRECISIONS = ("float32", "bfloat16")  # of the blocks' layers: that of their parameters, or autocast


@dataclass(frozen=True)
class Method(Settings):
    """A cell of the table, checked when it is made. global/global is backpropagation, local/local local learning."""

    target: str = field(metadata={"rule": Rule("gradient to follow", names=targets.names)})
    guess: str = field(metadata={"rule": Rule("direction on which the target is projected", names=guesses.names)})
    space: str = setting("activity", "where both live: a block's output, or its weights", names=SPACES)
    _: KW_ONLY
    averaged: bool | None = setting(None, "one coefficient per tensor, not per sample; null: in the space weight")
    per_block: bool = setting(False, "in the weights with averaged coefficients: one for all tensors of a block")
    mode: str = setting("projection", "<T, G> by backpropagating T, or by Jacobian-vector products", names=MODES)
    normalise: bool | None = setting(None, "divide by the guess's squared norm; null: as the guess says")
    tangents: int = setting(1, "random guesses that are averaged", least=1)
    distribution: str = setting("gaussian", "of random guesses", names=guesses.DISTRIBUTIONS)

    def check(self) -> None:
        only, source = self.of_guess.only_with, self.of_guess.source
        self.refuse_unless(only in (None, self.target), "guess", f"only stands with target = {only}")
        right = f"must be 1 with guess = {self.guess}; several need guess = random"
        self.refuse_unless(self.tangents == 1 or source == "noise", "tangents", right)
        right = "needs space = weight and averaged = true: else a block has one tensor, or a coefficient per sample"
        self.refuse_unless(not self.per_block or (self.space == "weight" and self.is_averaged), "per_block", right)
        if self.mode == "forward_mode":
            right = f"never forms the {self.target} target, so it cannot be the guess"
            self.refuse_unless(source != "target", "mode", right)
            right = f"follows a loss, and the target {self.target} is the gradient of none; take projection"
            self.refuse_unless(self.of_target.loss is not None, "mode", right)

    def check_precision(self, precision: str) -> None:
        """Refuse a precision that the method cannot have."""
        if choose("precision", precision, PRECISIONS) != "float32" and self.mode == "forward_mode":
            raise SettingError("precision", precision, "must be float32 with forward_mode, which is to be exact")

    @property
    def of_guess(self) -> guesses.Guess:
        return guesses.get(self.guess)

    @property
    def of_target(self) -> targets.Target:
        return targets.get(self.target)

    @property
    def is_averaged(self) -> bool:
        return self.space == "weight" if self.averaged is None else self.averaged

    @property
    def is_normalised(self) -> bool:
        return self.of_guess.normalised if self.normalise is None else self.normalise

    @property
    def is_projected(self) -> bool:
        """Whether guess and target differ, so that space, coefficients and mode matter."""
        guess = self.of_guess
        if not self.trains_blocks:
            return False
        from_own_head = guess.source == "head" and guess.trains_heads and self.of_target.loss == "head"
        is_target = guess.function is guesses.same and (guess.source == "target" or from_own_head)
        return not (is_target and self.is_normalised)

    @property
    def trains_blocks(self) -> bool:
        """Whether all blocks learn; the last one always does."""
        return self.of_guess.source != "nothing"

    @property
    def trains_auxiliaries(self) -> bool:
        """Whether all auxiliary nets learn; the classifier always does."""
        return self.of_target.uses_heads or self.of_guess.trains_heads

    @property
    def has_guess_nets(self) -> bool:
        """Whether the guess comes from nets of its own, since the auxiliary nets are trained for the target."""
        return self.of_target.uses_heads and self.of_guess.source == "head" and not self.of_guess.trains_heads

    @property
    def label(self) -> str:
        """`backpropagation`, `local learning`, `frozen blocks`, `NTK guess`."""
        if self.is_projected:
            return f"{self.of_guess.label} guess"
        if not self.trains_blocks:
            return self.of_guess.label
        return self.of_target.exact or f"{self.target} target"

    @property
    def colour(self) -> str:
        """In figures that tell methods apart by colour."""
        return (self.of_guess if self.is_projected or not self.trains_blocks else self.of_target).colour
