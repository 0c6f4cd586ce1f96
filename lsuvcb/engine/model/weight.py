"""One weight of a model: what is known of it before any pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from ..measuring.pool import Group, Pool
from ..select import kind_of
from .home import Home
from .left_alone import Reason


@dataclass(slots=True, eq=False)
class Vector:
    """What the values of a bias tell: their mean square, the largest magnitude, and whether all are equal.

    The mean square is NaN where it is below float32's range.

    Looked up for vectors of a common kind; a bias that has none is not asked.
    """

    square: float
    largest: float
    equal: bool


@dataclass(slots=True, eq=False)
class Weight:
    """One parameter, or one tensor that a module computes from parameters, such as a weight_norm's.

    Attributes:
        names: each dotted path of a module that holds it, with the tensor's own name behind it where that is not `weight`;
            the first is the one in messages.
        module, tensor_name: a module that holds it, and under which name.
        tensor: the values: the parameter itself, or what was computed at the start.
        home: where the values live, and how they are changed there.
        owners: every module that holds it.
        number: its place among the model's parameters, from 1.
        selected: `layers` means it.
        named: `layers` names it, so that it is done whatever a recipe would leave.
        zero: every value is zero.
        vector: of a bias; None where it was not looked up.
        on_purpose: a bias that was set on purpose, which is kept; None until a use asks.
        reason: why it is left alone whatever a pass sees; None for most.
    """

    names: list[str]
    module: nn.Module
    tensor_name: str
    tensor: Tensor
    home: Home
    owners: list[nn.Module] = field(default_factory=list)
    number: int = 0
    selected: bool = True
    named: bool = False
    zero: bool = False
    vector: Vector | None = None
    on_purpose: bool | None = None
    reason: Reason | None = None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def kind(self) -> str:
        """The type of the module, as its user wrote it."""
        return kind_of(self.module)

    def leave(self, reason: Reason) -> None:
        """Leave it alone for this reason; the first one stands."""
        self.reason = self.reason or reason

    def pool(self, group: Group) -> Pool | None:
        """Where its output's moments are summed; None for this process alone."""
        return None if group is None else Pool(group, self.number, f"layer {self}")

    def __str__(self) -> str:
        """For messages: the name, the kind, and the sizes in and out."""
        module, shape = self.module, tuple(self.tensor.shape)
        for fan_in, fan_out in (("in_features", "out_features"), ("in_channels", "out_channels")):
            if self.tensor_name == "weight" and hasattr(module, fan_in) and hasattr(module, fan_out):
                return f"{self.name!r} ({self.kind} {getattr(module, fan_in)} -> {getattr(module, fan_out)})"
        return f"{self.name!r} ({self.kind} {'x'.join(map(str, shape))})"
