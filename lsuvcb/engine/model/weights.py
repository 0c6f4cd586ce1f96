"""The catalogue: every parameter of a model, by identity, with what is known of it before any pass. Made once per call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LSUVError
from ..select import Selection, Selector, all_modules, module_names
from .blocks import Block, is_block
from .computed import Computed, computed_tensors
from .deepspeed import has_a_copy, is_taken_away
from .home import Derived, Held
from .left_alone import ComputedBy, InsideBlock, NotSelected
from .storage import Memory
from .weight import Weight
from .zeros import look_at_values


class Weights:
    """The parameters of one model; nothing is changed.

    Args:
        model: where to look.
        layers: which of them LSUV may touch; see `lsuv_`.

    Attributes:
        all: in the order of `model.named_parameters()`, with the tensors that modules compute.
        by_id: the weight of each parameter, by the parameter's identity; of two over the same memory it is the first.
        blocks: selected modules that turn a weight and a bias of their own making into an output, by their weight.
        modules: every module, by its first dotted path.
    """

    def __init__(self, model: nn.Module, layers: Selector | None = None) -> None:
        self.model = model
        self.all: list[Weight] = []
        self.by_id: dict[int, Weight] = {}
        self.blocks: dict[Weight, Block] = {}
        self._memory = Memory()
        names = module_names(model)
        self.modules = {paths[0]: module for module, paths in names.items()}
        for module, paths in names.items():
            self._register(paths, module)
        if layers is not None:
            self._choose(Selection(model, layers, [name for w in self.all for name in w.names]))
        look_at_values(self.all)

    def _register(self, paths: list[str], module: nn.Module) -> None:
        may_compute = module._forward_pre_hooks or "parametrizations" in module._modules
        computed = list(computed_tensors(module)) if may_compute else []
        hidden = {id(original) for tensor in computed for original in tensor.originals}
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in hidden or is_lazy(parameter):
                continue  # a lazy one in a module that this forward does not run has no values yet
            if ".parametrizations." in f".{paths[0]}":
                continue
            if (known := self.by_id.get(id(parameter))) is not None and known.tensor is parameter:
                known.owners.append(module)
                known.names += _full_names(paths, name)
                continue
            weight = self._add(paths, module, name, parameter, None)
            self.by_id[id(parameter)] = self._memory.owner(weight)
        for tensor in computed:
            values = tensor.read().requires_grad_(any(original.requires_grad for original in tensor.originals))
            weight = self._add(paths, module, tensor.name, values, tensor)
            if not weight.home.takes(values.detach() * 2):
                weight.leave(ComputedBy(tensor.kind))

    def _add(self, paths: list[str], module: nn.Module, name: str, tensor: Tensor, computed: Computed | None) -> Weight:
        home = Held(tensor) if computed is None else Derived(computed, tensor)
        weight = Weight(_full_names(paths, name), module, name, tensor, home, [module], len(self.all) + 1)
        self.all.append(weight)
        return weight

    def _choose(self, selection: Selection) -> None:
        for module in selection.modules:
            if is_block(module):
                self._make_block(module)
        for weight in self.all:
            weight.named = selection.means(weight.names, weight.owners)
            if not weight.named:
                weight.selected = False
                weight.reason = NotSelected()

    def _make_block(self, module: Any) -> None:
        """The block stands for its weight, under its own name; what else is inside goes unseen."""
        name = next(path for path, m in self.modules.items() if m is module)
        inside = set(module.modules())
        for weight in self.all:
            if weight.tensor is module.weight and isinstance(weight.tensor, nn.Parameter):
                weight.names, weight.module, weight.tensor_name = [name or "weight"], module, "weight"
                weight.owners = [module]
                self.blocks[weight] = Block(module, weight.tensor)
            elif inside.issuperset(weight.owners):
                weight.leave(InsideBlock(name))

    def computed(self) -> list[tuple[Weight, Computed]]:
        """The weights that modules compute, and how."""
        return [(w, w.home.computed) for w in self.all if isinstance(w.home, Derived)]


def _full_names(paths: list[str], name: str) -> list[str]:
    return [path if path and name == "weight" else f"{path}.{name}" if path else name for path in paths]


def refuse(model: nn.Module, *, to_read: bool = False) -> None:
    """LSUVError for a model that cannot be initialised at all: values that are not here, code that cannot be seen.

    Args:
        to_read: nothing will be written, so that values may have copies elsewhere.
    """

    def named(module: nn.Module) -> str:
        path = next(path for path, m in model.named_modules() if m is module)
        return f"{path!r} ({type(module).__name__})" if path else f"the model ({type(module).__name__})"

    for module in all_modules(model):
        if type(module).__name__ == "FullyShardedDataParallel":
            raise LSUVError(
                f"{named(module)} flattens its weights. Call lsuv_ before wrapping, or shard the model with "
                "torch.distributed.fsdp.fully_shard."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise LSUVError(
                f"{named(module)} is a ScriptModule, whose ops cannot be seen from Python. Initialise the model before "
                "torch.jit.script or torch.jit.trace."
            )
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter.is_meta:
                raise LSUVError(
                    f"parameter {name!r} of {named(module)} is on the meta device and has no values. Materialise the "
                    "model first: `model.to_empty(device=...)`, then load or initialise it."
                )
            if is_taken_away(parameter):
                raise LSUVError(
                    f"parameter {name!r} of {named(module)} has no values here: DeepSpeed's ZeRO stage 3 keeps them in parts. "
                    "Gather them before deepspeed.initialize, on every rank: `with deepspeed.zero.GatheredParameters("
                    "list(model.parameters()), modifier_rank=0): lsuv_(model, batch)`."
                )
            if has_a_copy(parameter) and not to_read:
                raise LSUVError(
                    f"parameter {name!r} of {named(module)} has a copy in DeepSpeed's ZeRO optimizer, whose first step would "
                    "undo LSUV. Initialise before deepspeed.initialize, or before the trainer that calls it: "
                    "`lsuv_(model, batch)`. No weight was changed."
                )
