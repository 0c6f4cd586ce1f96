"""What a model has been through, noted on it: initialised by LSUV, trained, read from a file. Once per model follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..engine.measuring.moments import flat
from ..engine.ranks import local, ranks_of
from ..engine.select import unwrap

# In the module's __dict__, not in its state: a deep copy or a pickle of a trained model carries it on, a state_dict does not.
_NOTE = "_lsuvcb_past"
_FEW = 8  # values of each parameter that are compared


@dataclass(frozen=True)
class Past:
    """What is known of a model's weights.

    Attributes:
        initialised: the weights, by name, that LSUV has brought to their targets or left alone with a reason.
        by: the callback that did, as its repr.
        sample: some values of each parameter right after that; None where it did not.
        trained: how it is known that they were trained; "" where nothing was noted.
    """

    initialised: frozenset[str] = frozenset()
    by: str = ""
    sample: Tensor | None = None
    trained: str = ""


def past_of(model: nn.Module) -> Past:
    """What was noted on `model`, under whatever wrappers; an empty Past if nothing was."""
    return vars(unwrap(model)).get(_NOTE) or Past()


def note_initialised(model: nn.Module, names: frozenset[str], by: str) -> None:
    """Note that an LSUVCallback has initialised these weights, beside those that were noted before."""
    known = past_of(model)
    vars(unwrap(model))[_NOTE] = Past(known.initialised | names, by, sample_of(model))


def note_trained(model: nn.Module, how: str) -> None:
    """Note that the weights are trained ones. A later LSUVCallback leaves them alone, unless it is told `force=True`."""
    vars(unwrap(model))[_NOTE] = replace(past_of(model), trained=how)


def has_changed(model: nn.Module) -> bool:
    """Has any parameter other values than right after the initialisation? The same answer on every rank of the model's group."""
    before, now = past_of(model).sample, sample_of(model)
    changed = before is not None and not torch.equal(before, now)
    ranks = ranks_of(model)
    if ranks is None:
        return changed
    device = next((local(p).device for p in model.parameters()), torch.device("cpu"))
    votes = torch.tensor(float(changed), device=device)
    ranks.max_(votes)
    return bool(votes)


@torch.no_grad()
def sample_of(model: nn.Module) -> Tensor:
    """Some values of each parameter, evenly spread, as one vector on the CPU: a step of training changes them."""
    parts: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in model.parameters():
        if is_lazy(parameter) or parameter.is_meta or parameter.layout != torch.strided:
            continue
        values = flat(local(parameter.detach()))
        if values.numel() and values.is_floating_point():
            few = values[:: -(-values.numel() // _FEW)]
            parts.setdefault((values.device, values.dtype), []).append(few)
    return torch.cat([torch.cat(few).cpu().double() for few in parts.values()] or [torch.empty(0)])
