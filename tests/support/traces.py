"""What lsuv_ and survey must leave alone in a model, the generators and torch's modes; a context that holds them to it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.overrides import _get_current_function_mode_stack


def bits(tensor: Tensor | None) -> bytes | None:
    """The values of a tensor, bit for bit: NaN equals NaN, -0 is not 0."""
    if tensor is None:
        return None
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def weights_of(model: nn.Module) -> dict[str, Any]:
    """Each entry of the state_dict, bit for bit."""
    return {f"state_dict {name}": bits(value) for name, value in model.state_dict().items()}


def rng(*generators: torch.Generator) -> dict[str, Any]:
    return {
        "RNG of torch": bits(torch.get_rng_state()),
        "RNG of numpy": repr(np.random.get_state()),  # noqa: NPY002 - the legacy global generator is the one at stake
        "RNG of python": random.getstate(),
        **{f"generator {i}": bits(g.get_state()) for i, g in enumerate(generators)},
    }


def _hooks(owner: dict[str, Any]) -> dict[str, Any]:
    return {name: list(map(id, value.values())) for name, value in owner.items() if "hooks" in name and value}


def _tensor(t: Tensor) -> dict[str, Any]:
    return {
        "identity": id(t), "dtype": t.dtype, "device": t.device, "shape": t.shape, "strides": t.stride(),
        "memory": t.data_ptr(), "requires_grad": t.requires_grad, "is_leaf": t.is_leaf, "attributes": sorted(vars(t)),
        "hooks": list(t._backward_hooks or ()), "grad": (id(t.grad), bits(t.grad)) if t.is_leaf else None,
    }  # fmt: skip


def traces(model: nn.Module) -> dict[str, Any]:
    """All that a pass may touch but for the values of parameters and the generators, under a name that explains itself."""
    found: dict[str, Any] = {
        "global hooks": _hooks({k: v for k, v in vars(nn_module).items() if k.startswith("_global_") and "hooks" in k}),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "function modes": list(map(id, _get_current_function_mode_stack())),
        "default dtype": torch.get_default_dtype(),
        "attention's fused path": torch.backends.mha.get_fastpath_enabled(),
    }
    for path, module in model.named_modules():
        found[f"mode of {path!r}"] = module.training
        found[f"hooks of {path!r}"] = _hooks(vars(module))
        found[f"attributes of {path!r}"] = sorted(vars(module))
        found[f"children of {path!r}"] = [(name, id(child)) for name, child in module._modules.items()]
        for name, buffer in module._buffers.items():
            found[f"buffer {name!r} of {path!r}"] = buffer if buffer is None else (_tensor(buffer), bits(buffer))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[f"parameter {name!r}"] = _tensor(parameter)
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in before | after if before.get(key, "absent") != after.get(key, "absent")]


@contextmanager
def undisturbed(
    model: nn.Module, *generators: torch.Generator, weights: bool = False, draws: bool = False
) -> Iterator[None]:
    """What runs inside leaves no trace in `model`; its weights may change.

    An exception inside is passed on, after the same look; then neither weights nor generators may have changed.

    Args:
        weights: hold the weights too.
        draws: torch's generator and `generators` may move on.
    """

    def look(everything: bool) -> dict[str, Any]:
        found = traces(model)
        if everything or weights:
            found |= weights_of(model)
        if everything or not draws:
            found |= rng(*generators)
        return found

    success, failure = look(False), look(True)
    try:
        yield
    except BaseException as error:
        _hold(failure, look(True), f"after {type(error).__name__}")
        raise
    _hold(success, look(False), "after success")


def _hold(before: dict[str, Any], after: dict[str, Any], when: str) -> None:
    if found := differences(before, after):
        raise AssertionError(f"{when} these differ: {'; '.join(found)}")
