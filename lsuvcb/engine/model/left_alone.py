"""Every reason why a weight is left alone, or why its layer is not as one might expect: a type each, with its sentence.

Code asks for the type; what a user reads is `str(reason)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class Reason:
    """A fact about a weight. A subclass gives the sentence, in which its fields are filled in."""

    sentence: ClassVar[str] = ""

    def __str__(self) -> str:
        return self.sentence.format(**vars(self))


@dataclass(frozen=True)
class Frozen(Reason):
    sentence = "frozen (requires_grad=False)"


@dataclass(frozen=True)
class NotSelected(Reason):
    sentence = "not selected by `layers`"


@dataclass(frozen=True)
class NotUsed(Reason):
    sentence = "not used in this pass"


@dataclass(frozen=True)
class AllZero(Reason):
    sentence = "all zero, as a branch that starts silent"


@dataclass(frozen=True)
class Empty(Reason):
    sentence = "its output is empty"


@dataclass(frozen=True)
class Constant(Reason):
    sentence = "constant output: no scale gives it a spread"


@dataclass(frozen=True)
class ConstantBehindActivation(Reason):
    sentence = "constant output of its activation: no scale gives it a spread"


@dataclass(frozen=True)
class Unfed(Reason):
    sentence = "constant output: its input is all zero at its first use, where no scale shows"


# Memory, modules and what computes a weight


@dataclass(frozen=True)
class SharesMemory(Reason):
    sentence = "shares its memory with {other!r}"
    other: str


@dataclass(frozen=True)
class OverlapsMemory(Reason):
    sentence = "shares its memory with {other!r}, in another shape"
    other: str


@dataclass(frozen=True)
class Expanded(Reason):
    sentence = "several of its values are one place in memory (an expanded tensor)"


@dataclass(frozen=True)
class InsideBlock(Reason):
    sentence = "inside the selected block {block!r}"
    block: str


@dataclass(frozen=True)
class ComputedBy(Reason):
    sentence = "computed by {kind}, which does not take a scaled weight"
    kind: str


# How the pass saw it used


@dataclass(frozen=True)
class UsedEarlier(Reason):
    sentence = "used earlier in the pass, by {op}"
    op: str


@dataclass(frozen=True)
class UsedBy(Reason):
    sentence = "used by {op}, no linear op"
    op: str


@dataclass(frozen=True)
class LookedUp(Reason):
    sentence = "a look-up table ({op}), no linear op"
    op: str


@dataclass(frozen=True)
class HiddenInRecurrence(Reason):
    sentence = "used inside a recurrent op that hides its outputs"


@dataclass(frozen=True)
class PackedInAttention(Reason):
    sentence = "used inside multi_head_attention_forward, which hides its output (packed in_proj)"


@dataclass(frozen=True)
class InputOf(Reason):
    sentence = "the input of {op}, not its weight"
    op: str


@dataclass(frozen=True)
class Transformed(Reason):
    sentence = "transformed before use: {op} works on what {by} made of it"
    op: str
    by: str


@dataclass(frozen=True)
class ProductOfTwo(Reason):
    sentence = "product of two parameters ({op})"
    op: str


@dataclass(frozen=True)
class UnderVmap(Reason):
    sentence = "used under torch.vmap, which hides the values that {op} gives"
    op: str


@dataclass(frozen=True)
class UnderTransform(Reason):
    sentence = "used under {transform}, which hands the ops other tensors in its place"
    transform: str


@dataclass(frozen=True)
class UsedInParts(Reason):
    sentence = "used in parts: {op} works on a slice of it"
    op: str


@dataclass(frozen=True)
class NestedOutput(Reason):
    sentence = "its output is a nested tensor"


@dataclass(frozen=True)
class NotReal(Reason):
    sentence = "{what} is {of} ({dtype})"
    what: str
    of: str
    dtype: str


@dataclass(frozen=True)
class Generates(Reason):
    sentence = "its output becomes the kernel of {op}, in a way that is not linear in it"
    op: str


# Left by the recipe


@dataclass(frozen=True)
class Head(Reason):
    sentence = "the head: it feeds no other weight, and stays as its maker left it"


@dataclass(frozen=True)
class NormBehind(Reason):
    sentence = "a normalisation right behind it takes its scale away"


@dataclass(frozen=True)
class LeftByStd(Reason):
    sentence = "left by `std`"


# Its bias


@dataclass(frozen=True)
class BiasIsNoParameter(Reason):
    sentence = "what is added to its output inside the op is no parameter of its own"


@dataclass(frozen=True)
class BiasIsScaled(Reason):
    sentence = "its bias is scaled inside the op (beta)"


@dataclass(frozen=True)
class BiasIsFrozen(Reason):
    sentence = "its bias is frozen (requires_grad=False)"


@dataclass(frozen=True)
class BiasIsComputed(Reason):
    sentence = "its bias is computed by {kind}"
    kind: str


@dataclass(frozen=True)
class BiasUsedEarlier(Reason):
    sentence = "its bias is used earlier in the pass, by {op}"
    op: str


# Of layers that are done, in another way than one might expect


@dataclass(frozen=True)
class MeasuredAtLayer(Reason):
    sentence = "measured at the layer: {why}"
    why: str


@dataclass(frozen=True)
class TakesNoDraw(Reason):
    sentence = "computed by {kind}, which takes no orthonormal draw: only scaled"
    kind: str


@dataclass(frozen=True)
class SparseTakesNoDraw(Reason):
    sentence = "a sparse weight, which takes no orthonormal draw: only scaled"


@dataclass(frozen=True)
class NoBias(Reason):
    sentence = "no bias: mean not moved"


@dataclass(frozen=True)
class BiasInKernel(Reason):
    sentence = "its bias is a part of the kernel: mean not moved"


@dataclass(frozen=True)
class BiasIsMultiplied(Reason):
    sentence = "its bias is multiplied before use: mean not moved"


@dataclass(frozen=True)
class BiasKept(Reason):
    sentence = "its bias was set on purpose and is kept"


@dataclass(frozen=True)
class Kernel(Reason):
    sentence = "measured behind {op}, which takes its output for a kernel"
    op: str


@dataclass(frozen=True)
class FactorBehind(Reason):
    sentence = "its output is multiplied by {what} behind it, which the std does not know"
    what: str


@dataclass(frozen=True)
class SumBehind(Reason):
    sentence = "its output is summed behind it ({op}); the sum has another std"
    op: str


@dataclass(frozen=True)
class FlatDraw(Reason):
    sentence = "drawn as a flat matrix: {why}"
    why: str


@dataclass(frozen=True)
class NoLevelStd(Reason):
    sentence = "std {std:.3g}: at this depth none keeps the {what} within bounds"
    what: str
    std: float


@dataclass(frozen=True)
class Spread(Reason):
    sentence = "std {low:.3g} to {high:.3g} over {uses} uses"
    low: float
    high: float
    uses: int


def add(first: Reason | None, second: Reason | None) -> Reason | None:
    """Two reasons as one, told one behind the other; either may be None."""
    if first is None or second is None:
        return first or second
    return Both(first, second)


@dataclass(frozen=True)
class Both(Reason):
    first: Reason
    second: Reason

    def __str__(self) -> str:
        return f"{self.first}; {self.second}"
