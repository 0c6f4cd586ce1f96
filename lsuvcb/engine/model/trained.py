"""What tells that a model's weights were trained, and what cannot be told: the one list.

Told:
    - a batch norm that has counted batches, or whose statistics are not those of a new one (mean 0, variance 1);
    - a norm layer whose scales differ from one another: a new one has them all equal (1, or 0, or 1e-5);
    - a model that a class of the Hugging Face Hub loaded: it knows its source by name, and its parameters are marked as
      loaded, or (in a deep copy, which loses the marks) it is still in eval mode, as `from_pretrained` leaves it;
    - an optimizer, where a trainer hands one over, that keeps something of steps that it has taken.

Not told, because nothing in the weights shows it: `load_state_dict` into a net without norm layers, or one whose norms are
as new; plain SGD, which keeps nothing of its steps. What a trainer itself knows (a fit that resumes, `learn.load`) is noted
by the callbacks: see callback/past.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..ranks import whole
from ..select import kind_of, module_paths

_STATISTICS = (("running_mean", "running_var"), ("means", "vars"))  # torch's names, and the fast.ai course's
_SCALES = frozenset("weight scale scales gamma g gain a_2 mult mults".split())
_NORM = re.compile("norm", re.IGNORECASE)


class _Sign(NamedTuple):
    """A value that tells, once it is read from its device: 1 if it does, 0 if not; or a count of batches."""

    value: Tensor
    words: Callable[[int], str]


@torch.no_grad()
def sign_of_training(model: nn.Module) -> str:
    """The first thing that tells that the model's weights were trained, in words; "" where nothing does.

    Reads a few values from each device once, and changes nothing.
    """
    if source := _hub_source(model):
        return f"it was loaded from {source!r}"
    found: dict[torch.device, list[_Sign]] = {}
    for path, module in module_paths(model).items():
        for sign in _signs(f"{path!r} ({kind_of(module)})", module):
            found.setdefault(sign.value.device, []).append(sign)
    for signs in found.values():
        values = torch.stack([sign.value.to(torch.int64) for sign in signs]).tolist()
        for sign, value in zip(signs, values, strict=True):
            if value > 0:
                return sign.words(value)
    return ""


def has_stepped(optimizer: Any) -> bool:
    """Does the optimizer (torch's or fastai's) keep momentum, averages or a count of steps?

    fastai notes on some parameters how to treat them before any step; these are flags, no tensors and no counts.
    """
    states = getattr(optimizer, "state", None)
    kept = states.values() if isinstance(states, dict) else ()
    values = [value for state in kept if isinstance(state, dict) for value in state.values()]
    return any(isinstance(v, Tensor) or (isinstance(v, int) and not isinstance(v, bool) and v > 0) for v in values)


def _signs(name: str, module: nn.Module) -> Iterator[_Sign]:
    buffers = module._buffers
    if _is_readable(counter := buffers.get("num_batches_tracked")) and counter.numel() == 1:
        yield _Sign(counter.reshape(()), lambda n: f"{name} has counted {n} batches")
    for mean, var in ((buffers.get(m), buffers.get(v)) for m, v in _STATISTICS):
        if _is_readable(mean) and _is_readable(var):
            moved = mean.count_nonzero() + (var != 1).count_nonzero()
            yield _Sign(moved > 0, lambda _: f"{name} has statistics that are not those of a new one")
    if _NORM.search(type(module).__name__):
        for parameter in (p for key, p in module._parameters.items() if key in _SCALES):
            if _is_readable(parameter) and max(parameter.shape, default=0) == parameter.numel() > 1:
                values = whole(parameter.detach()).flatten()
                yield _Sign((values != values[0]).any(), lambda _: f"{name} has scales that differ from one another")


def _is_readable(tensor: Any) -> TypeGuard[Tensor]:
    return isinstance(tensor, Tensor) and not is_lazy(tensor) and not tensor.is_meta and tensor.numel() > 0


def _hub_source(model: nn.Module) -> str:
    """Where a Hub class's `from_pretrained` found the model's weights, or those of a part of it; "" otherwise.

    `from_config` with a config that was loaded has the name, too, but not the marks, and leaves the model in train mode.
    """
    for module in module_paths(model).values():
        held = vars(module)
        name = held.get("name_or_path") or getattr(held.get("config"), "_name_or_path", "")
        if isinstance(name, str) and name:
            marked = any(getattr(p, "_is_hf_initialized", False) for p in module.parameters())
            if marked or not module.training:
                return name
    return ""
