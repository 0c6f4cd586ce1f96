"""Every parameter of a model, by identity: its name in the report, and what a pass finds out about it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LSUVError
from ..measuring.moments import Pool, is_plain_vector, starts_alive
from ..ranks import fully_sharded, whole
from ..select import Selector, all_modules, module_paths, select_modules
from .blocks import Block, is_block
from .computed import Reparametrized, reparametrized
from .storage import Places

_SOURCE = "_lsuvcb_source"  # an attribute on tensors that a pass derives from a weight; it dies with the tensor


def tensors_of(value: object) -> list[Tensor]:
    """The tensors in a value that an op takes or gives: itself, or the items of a tuple or list."""
    if isinstance(value, Tensor):
        return [value]
    return [item for item in value if isinstance(item, Tensor)] if isinstance(value, (tuple, list)) else []


@dataclass(slots=True, eq=False)
class Weight:
    """One parameter (or one parametrized tensor) of a module, and how this pass met it.

    Attributes:
        name: the module's dotted path; with the tensor's own name behind it where that is not `weight`.
        kind: the type of the module that owns it.
        tensor: the values: the parameter itself, or what the parametrization computed at the start of the pass.
        computed: how the module computes it; None for a plain parameter.
        block: the selected module that turns it into an output in its own way; None for most.
        zero: every value is zero.
        mean_square: of its values, where it looks like a bias and that is cheap; NaN otherwise.
        reason: why it is left alone; "" while nothing speaks against it.
        used_by: the op that used it first; "" before any did.
        uses: how many linear ops used it as their weight.
        unselected: `layers` does not mean it.
        number: its place among the model's parameters, from 1.
        owners: every module that holds it.
    """

    name: str
    module: nn.Module
    tensor_name: str
    tensor: Tensor
    computed: Reparametrized | None = None
    block: Block | None = None
    zero: bool = False
    mean_square: float = math.nan
    reason: str = ""
    used_by: str = ""
    uses: int = 0
    unselected: bool = False
    number: int = 0
    owners: list[nn.Module] = field(default_factory=list)

    @property
    def kind(self) -> str:
        kinds = type(self.module).__mro__  # a parametrized module has a class of its own
        return kinds["parametrizations" in self.module._modules].__name__

    def note(self, reason: str) -> None:
        """Leave it alone for this reason; the first one stands."""
        self.reason = self.reason or reason

    def pool(self, group: dist.ProcessGroup | None) -> Pool | None:
        """Where its output's moments are summed; None for this process alone."""
        return None if group is None else Pool(group, self.number, f"layer {self}")

    def __str__(self) -> str:
        """For messages: the name, the kind, and the sizes in and out."""
        module, shape = self.module, tuple(self.tensor.shape)
        for fan_in, fan_out in (("in_features", "out_features"), ("in_channels", "out_channels")):
            if self.tensor_name == "weight" and hasattr(module, fan_in) and hasattr(module, fan_out):
                return f"{self.name!r} ({self.kind} {getattr(module, fan_in)} -> {getattr(module, fan_out)})"
        return f"{self.name!r} ({self.kind} {'x'.join(map(str, shape))})"


@dataclass(slots=True, eq=False)
class Source:
    """Where a tensor comes from: a weight, through views and casts that `replay` repeats on other values of it."""

    weight: Weight
    replay: Callable[[Tensor], Tensor] = lambda values: values
    part: bool = False


@dataclass(slots=True, eq=False)
class Made:
    """A tensor that an op other than a view computed from parameters alone: a standardised weight, a merged adapter."""

    op: str
    weights: tuple[Weight, ...]


class Weights:
    """The parameters of one model for one pass: a look-up by identity, and the order in which the pass met them.

    Args:
        model: its parameters are found anew; nothing is changed.
        layers: which of them LSUV may touch; see `lsuv_`.
    """

    def __init__(self, model: nn.Module, layers: Selector | None = None) -> None:
        self._by_id: dict[int, Source] = {}
        self.all: list[Weight] = []
        self.met: list[Weight] = []
        self.blocks: list[Weight] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._model = model
        self._tagged: list[weakref.ref[Tensor]] = []
        self._places = Places()
        self.paths = module_paths(model)
        for path, module in self.paths.items():
            self._register(path, module)
        self._choose(model, layers)
        self._find_zeros()

    def _register(self, path: str, module: nn.Module) -> None:
        may_compute = module._forward_pre_hooks or "parametrizations" in module._modules
        computed = list(reparametrized(module)) if may_compute else []
        hidden = {id(original) for tensor in computed for original in tensor.originals}
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in hidden or ".parametrizations." in f".{path}" or is_lazy(parameter):
                continue  # a lazy one in a module that this forward does not run has no values yet
            if (source := self._by_id.get(id(parameter))) is not None:
                source.weight.owners.append(module)
                continue
            weight = self._add(path, module, name, parameter)
            self._by_id[id(parameter)] = self._places.take(parameter, Source(weight))
        for tensor in computed:
            weight = self._add(path, module, tensor.name, tensor.read().requires_grad_(_trainable(tensor)))
            weight.computed = tensor
            if tensor.originals_for(weight.tensor.detach() * 2) is None:
                weight.note(f"computed by {tensor.kind}, which does not take a scaled weight")

    def _add(self, path: str, module: nn.Module, name: str, tensor: Tensor) -> Weight:
        full = path if path and name == "weight" else f"{path}.{name}" if path else name
        weight = Weight(full, module, name, tensor, number=len(self.all) + 1, owners=[module])
        self.all.append(weight)
        return weight

    def _choose(self, model: nn.Module, layers: Selector | None) -> None:
        if layers is None:
            return
        chosen: set[int] = set()
        if isinstance(layers, (list, tuple)) and not any(isinstance(item, type) for item in layers):
            named = {w.name: w for w in self.all}
            chosen = {id(named[item]) for item in layers if isinstance(item, str) and item in named}
            rest: list[Any] = [item for item in layers if not (isinstance(item, str) and item in named)]
            modules = set(select_modules(model, rest).values()) if rest or not layers else set()
        else:
            modules = set(select_modules(model, layers).values())
        for module in modules:
            if is_block(module):
                self._make_block(module)
        for weight in self.all:
            if id(weight) not in chosen and not modules.intersection(weight.owners):
                weight.unselected = True
                weight.reason = "not selected by `layers`"

    def _make_block(self, module: nn.Module) -> None:
        """The block stands for its weight, under its own name; what else is inside goes unseen."""
        name = next(path for path, m in self.paths.items() if m is module)
        inside = set(module.modules())
        for weight in self.all:
            if weight.tensor is module.weight and isinstance(weight.tensor, nn.Parameter):
                weight.name, weight.module, weight.tensor_name = name or "weight", module, "weight"
                weight.owners, weight.block = [module], Block(module, weight.tensor)
                self.blocks.append(weight)
            elif inside.issuperset(weight.owners):
                weight.note(f"inside the selected block {name!r}")

    @torch.no_grad()
    def _find_zeros(self) -> None:
        """Two reads from each device for the whole model: the first values of each tensor, then those that began with zeros."""
        alike: dict[Any, list[Weight]] = {}
        for weight in self.all:
            if is_plain_vector(weight.tensor):
                alike.setdefault((weight.tensor.shape, weight.tensor.dtype), []).append(weight)
        for group in alike.values():
            squares = torch.stack([w.tensor for w in group]).square_().mean(1).tolist()
            for weight, square in zip(group, squares, strict=True):
                weight.mean_square = square if square > 1e-30 else math.nan
        unsure = [w for w in self.all if not (w.mean_square > 0 or starts_alive(w.tensor))]
        candidates = [w for w in unsure if w.tensor.numel() and _is_plain(w.tensor)]
        for probe in (
            lambda t: whole(t.detach()).reshape(-1)[:64].any(),
            lambda t: whole(t.detach()).count_nonzero() > 0,
        ):
            found: dict[int, bool] = {}
            for device in {w.tensor.device for w in candidates}:
                here = [w for w in candidates if w.tensor.device == device]
                found.update(zip(map(id, here), torch.stack([probe(w.tensor) for w in here]).tolist(), strict=True))
            candidates = [w for w in candidates if not found[id(w)]]
        for weight in candidates:
            weight.zero = True

    def source(self, value: object) -> Source | Made | None:
        """Where `value` comes from; None for anything that is no parameter and not made of parameters alone."""
        return self.sources((value,)).get(id(value))

    def sources(self, values: Iterable[object]) -> dict[int, Source | Made]:
        """`source` of each value, and of each item in a list or tuple among them, by identity; those that have one."""
        by_id, tagged = self._by_id, self._tagged
        found: dict[int, Source | Made] = {}
        for value in values:
            source = by_id.get(id(value)) or (getattr(value, _SOURCE, None) if tagged else None)
            if source is not None:
                found[id(value)] = source
            elif isinstance(value, (tuple, list)):
                found.update(self.sources(value))
        return found

    def derive(self, result: object, parent: Source | Made, replay: Callable[[Tensor], Tensor], part: bool) -> None:
        """Remember that `result` (or each tensor in it) is `replay` of what `parent` is."""
        for item in tensors_of(result):
            if isinstance(parent, Source):
                taken = parent.part or (part and not _is_all_of(item, parent.weight.tensor))
                self.tag(item, Source(parent.weight, lambda v: replay(parent.replay(v)), taken))
            else:
                self.tag(item, parent)

    def tag(self, tensor: Tensor, source: Source | Made) -> None:
        if id(tensor) not in self._by_id:
            setattr(tensor, _SOURCE, source)
            self._tagged.append(weakref.ref(tensor))

    def listen(self) -> None:
        """Be told of the tensors that modules compute in the forward to come, or gather from other ranks."""
        if any(True for _ in fully_sharded(self._model)):
            for module in self.paths.values():
                held = {name: self._by_id[id(p)] for name, p in module._parameters.items() if id(p) in self._by_id}
                self._handles.append(module.register_forward_pre_hook(partial(self._gathered, held)))
        for weight in self.all:
            if weight.computed is not None:
                source = Source(weight)
                self._handles.append(weight.computed.register(partial(self.tag, source=source)))

    def _gathered(self, held: dict[str, Source], module: nn.Module, args: Any) -> None:
        """FSDP2 puts whole parameters in the place of the sharded ones for the time of a forward."""
        for name, source in held.items():
            if (parameter := module._parameters.get(name)) is not None:
                self._by_id.setdefault(id(parameter), source)

    def forget(self) -> None:
        """Take the hooks off, and the tags of every tensor that outlives the pass."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for reference in self._tagged:
            tensor = reference()
            if tensor is not None and hasattr(tensor, _SOURCE):
                delattr(tensor, _SOURCE)
        self._tagged.clear()

    def meet(self, weight: Weight, op: str) -> None:
        """Note the first op that used `weight`."""
        if not weight.used_by:
            weight.used_by = op
            self.met.append(weight)

    def in_order(self) -> Iterator[Weight]:
        """What ran, in execution order; then the rest, in the order of the model."""
        met = set(map(id, self.met))
        yield from self.met
        yield from (w for w in self.all if id(w) not in met)


def _is_all_of(view: Tensor, tensor: Tensor) -> bool:
    """w[:] and w[None] are the whole weight; rows gathered by an index are not, however many."""
    if not view._is_view() or view.numel() != tensor.numel():
        return False
    repeats = any(size > 1 and stride == 0 for size, stride in zip(view.shape, view.stride(), strict=True))
    return not repeats and view.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def _is_plain(tensor: Tensor) -> bool:
    """Dense, real, floating, of two bytes at least: what can be zero on purpose, and can be asked."""
    return tensor.layout == torch.strided and tensor.is_floating_point() and tensor.element_size() > 1


def _trainable(tensor: Reparametrized) -> bool:
    return any(original.requires_grad for original in tensor.originals)


def refuse(model: nn.Module) -> None:
    """LSUVError for a model that cannot be initialised at all: values that do not exist, code that cannot be seen."""

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
            if parameter is not None and parameter.is_meta:
                raise LSUVError(
                    f"parameter {name!r} of {named(module)} is on the meta device and has no values. Materialise the "
                    "model first: `model.to_empty(device=...)`, then load or initialise it."
                )
