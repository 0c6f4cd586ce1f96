"""Weights that a module computes from other parameters before it uses them: weight_norm and its kin, in both forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..keeping.undisturbed import undisturbed


@dataclass(frozen=True)
class Computed:
    """One tensor of a module that is computed, not stored.

    Attributes:
        module, name: whose, and what it is called there.
        kind: what computes it, for the report.
        originals: the parameters that it is computed from.
        assign: sets values by way of the originals; None where the form has no way.
        register: calls back with the tensor each time that the module computes it in a forward.
    """

    module: nn.Module
    name: str
    kind: str
    originals: list[Tensor]
    assign: Callable[[Tensor], None] | None
    register: Callable[[Callable[[Tensor], None]], torch.utils.hooks.RemovableHandle]

    def read(self) -> Tensor:
        """The tensor as the originals give it now, detached."""
        with torch.no_grad(), undisturbed(self.module):
            for hook in self.module._forward_pre_hooks.values():
                if isinstance(hook, (WeightNorm, SpectralNorm)):
                    hook(self.module, ())
            return getattr(self.module, self.name).detach().clone()

    def originals_for(self, values: Tensor) -> list[Tensor] | None:
        """What the originals must be to give `values`; None where assigning them does not give them back (spectral norm).

        Tried on the module itself, whose originals are as before when this returns or raises.
        """
        if self.assign is None:
            return None
        before = [(o, o.detach(), o.detach().clone()) for o in self.originals]
        with torch.no_grad():
            try:
                self.assign(values)
                given = [o.detach().clone() for o in self.originals]
                back = self.read()
            except (AssertionError, NotImplementedError, RuntimeError, ValueError, TypeError):
                return None  # this parametrization has no inverse, or none for such values
            finally:
                for original, memory, saved in before:
                    original.data = memory  # an assignment may have put other memory under it
                    original.copy_(saved)
        largest, rounding = values.abs().max(), max(1e-3, 4 * torch.finfo(values.dtype).eps)
        return given if back.shape == values.shape and bool((back - values).abs().max() <= rounding * largest) else None


def computed_tensors(module: nn.Module) -> Iterator[Computed]:
    """The computed tensors of one module; of its own, not of its children."""
    if parametrize.is_parametrized(module):
        for name, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
            yield _parametrization(module, name, chain)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield _weight_norm(module, hook)
        elif isinstance(hook, SpectralNorm):
            original = getattr(module, f"{hook.name}_orig")
            yield Computed(module, hook.name, "spectral_norm", [original], None, _at_forward(module, hook.name))


def _parametrization(module: nn.Module, name: str, chain: parametrize.ParametrizationList) -> Computed:
    originals = [chain.original] if chain.is_tensor else [getattr(chain, f"original{i}") for i in range(chain.ntensors)]

    def register(tag: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            tag(output)

        return chain.register_forward_hook(hook)

    kind = ", ".join(type(step).__name__.lstrip("_") for step in chain)
    return Computed(module, name, kind, originals, lambda values: setattr(module, name, values), register)


def _weight_norm(module: nn.Module, hook: WeightNorm) -> Computed:
    g, v = (getattr(module, f"{hook.name}_{part}") for part in "gv")

    def assign(values: Tensor) -> None:
        v.copy_(values)
        g.copy_(torch.norm_except_dim(values, 2, hook.dim))

    return Computed(module, hook.name, "weight_norm", [g, v], assign, _at_forward(module, hook.name))


def _at_forward(
    module: nn.Module, name: str
) -> Callable[[Callable[[Tensor], None]], torch.utils.hooks.RemovableHandle]:
    def register(tag: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, args: object) -> None:
            tag(getattr(module, name))

        return module.register_forward_pre_hook(hook)

    return register
