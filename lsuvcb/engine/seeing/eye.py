"""The eye: sees each op of a forward that uses a parameter, knows which, and whether the op is linear in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..model.weights import Made, Source, Weight, Weights, tensors_of
from ..ranks import is_sharded
from . import ops

_inside_transform = torch._C._are_functorch_transforms_active  # torch.vmap and its like


@dataclass(slots=True, eq=False)
class Use:
    """One call of a linear op with a weight of the model: y = op(x, W) + b.

    Attributes:
        weight, source, key: whose weight it is, how the call's value comes from it, and the value's place in the call.
        bias, bias_source, bias_key: the same of the bias, a parameter of the model; None without one.
        fixed_bias: why the op's added term cannot change; "" if it can or if there is none.
        others: parameters among the call's other arguments.
        stacked: the op multiplies by a stack of matrices (bmm).
    """

    op: str
    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    weight: Weight
    source: Source
    key: ops.Key
    bias: Weight | None = None
    bias_source: Source | None = None
    bias_key: ops.Key | None = None
    fixed_bias: str = ""
    others: Sequence[Source | Made] = ()

    @property
    def stacked(self) -> bool:
        return ("mm" in self.op or self.op == "matmul") and self.weight.tensor.ndim > 2

    def run(self, weight: Tensor | None = None, bias: Tensor | None = None) -> Any:
        """Call the op as the model did; with other values for its weight and bias where they are given."""
        args, kwargs = self.args, self.kwargs
        if weight is not None:
            values = self.source.replay(weight).to(ops.get(args, kwargs, self.key).dtype)  # FSDP2 may gather in bf16
            args, kwargs = ops.put(args, kwargs, self.key, values)
        if bias is not None and self.bias_key is not None and self.bias_source is not None:
            values = self.bias_source.replay(bias).to(ops.get(args, kwargs, self.bias_key).dtype)
            args, kwargs = ops.put(args, kwargs, self.bias_key, values)
        return self.func(*args, **kwargs)

    def inputs(self) -> list[Tensor]:
        """The tensors that the weight works on."""
        weight, added = ops.get(self.args, self.kwargs, self.key), ops.get(self.args, self.kwargs, self.bias_key)
        values = (*self.args, *self.kwargs.values())
        return [t for value in values for t in tensors_of(value) if t is not weight and t is not added]

    def free_inputs(self) -> None:
        """Let go of the call's arguments, which the model may have freed; it cannot be run any more."""
        self.args, self.kwargs = (), {}


def output_of(result: Any) -> Tensor:
    """The tensor that a linear op gave: its result, or the first of them (attention also gives its weights)."""
    return result[0] if isinstance(result, (tuple, list)) else result


class Eye(TorchFunctionMode):
    """Watches a forward. A subclass says what happens at a weight at work (`at_work`) and at any other use (`elsewhere`).

    It needs no module hooks, so functional code, subclasses with a forward of their own and hooks that replace
    outputs are all seen. Inside an op the mode is off: what `F.multi_head_attention_forward` does within stays hidden.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights

    def at_work(self, use: Use) -> Any:
        """Run a linear op and return its result, corrected or not."""
        return use.run()

    def elsewhere(self, sources: list[Source], op: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run any other op that uses parameters."""
        return func(*args, **kwargs)

    def __enter__(self) -> Any:
        self.weights.listen()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.weights.forget()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sources = self.weights.sources((*args, *kwargs.values()) if kwargs else args)
        if not sources:
            return func(*args, **kwargs)
        op = ops.op_name(func)
        if use := self._linear(op, func, args, kwargs, sources):
            result = self.at_work(use)
            for source in sources.values():  # attention's packed in_proj, a parameter that is the weight's input
                if isinstance(source, Source):
                    self.weights.meet(source.weight, op)
            return result
        if op in ops.LOOKS:
            return func(*args, **kwargs)
        if op in ops.VIEWS or op in ops.PARTS:
            parent, result = self.weights.source(args[0]), func(*args, **kwargs)
            if parent is None:  # the parameter only says which shape or type
                return result
            self.weights.derive(result, parent, lambda v: func(v, *args[1:], **kwargs), part=op in ops.PARTS)
            return result
        if ops.writes(op) and isinstance(written := self.weights.source(args[0]), Source):
            result = self._other(list(sources.values()), op, func, args, kwargs)
            self.weights.meet(written.weight, op)
            self.weights.tag(args[0], Made(op, (written.weight,)))  # a copy of the weight no more
            return result
        return self._other(list(sources.values()), op, func, args, kwargs)

    def _linear(self, op: str, func: Any, args: Any, kwargs: Any, sources: dict[int, Source | Made]) -> Use | None:
        places = ops.slots(op, args, kwargs)
        if places is None:
            return None
        at = []
        for key in places.weights:
            source = sources.get(id(ops.get(args, kwargs, key)))
            if isinstance(source, Source):
                at.append((key, source))
            elif source is not None:
                for weight in source.weights:
                    weight.note(f"transformed before use: {op} works on what {source.op} made of it")
        if len(at) > 1:  # a parameter that is spread over the batch is data (learned queries), the other one the weight
            at = [(k, s) for k, s in at if ops.get(args, kwargs, k).numel() <= s.weight.tensor.numel()] or at
        if len(at) != 1:
            for _, source in at:
                source.weight.note(f"product of two parameters ({op})")
            return None
        key, source = at[0]
        if _inside_transform() and _is_batched(args):
            source.weight.note(f"used under torch.vmap, which hides the values that {op} gives")
            return None
        if source.part:
            source.weight.note(f"used in parts: {op} works on a slice of it")
        added = ops.get(args, kwargs, places.bias)
        others: Sequence[Source | Made] = ()
        if len(sources) > 1 + (added is not None):
            known = (id(ops.get(args, kwargs, key)), id(added))
            others = [s for place, s in sources.items() if place not in known]
        if added is None:
            return Use(op, func, args, kwargs, source.weight, source, key, others=others)
        of = sources.get(id(added))
        bias_of = of if isinstance(of, Source) and not of.part else None
        bias = None if bias_of is None else bias_of.weight
        fixed = _fixed_bias(bias, kwargs)
        return Use(op, func, args, kwargs, source.weight, source, key, bias, bias_of, places.bias, fixed, others)

    def _other(self, sources: list[Source | Made], op: str, func: Any, args: Any, kwargs: Any) -> Any:
        direct = [s for s in sources if isinstance(s, Source)]
        result = self.elsewhere(direct, op, func, args, kwargs)
        outputs = tensors_of(result)
        if not outputs:  # a look at a size, a flag or a value; no use
            return result
        for source in direct:
            self.weights.meet(source.weight, op)
        if all(self.weights.source(t) is not None for a in (*args, *kwargs.values()) for t in tensors_of(a)):
            of = {id(w): w for s in sources for w in (s.weights if isinstance(s, Made) else (s.weight,))}
            for tensor in outputs:
                self.weights.tag(tensor, Made(op, tuple(of.values())))
        return result


def _is_batched(args: Any) -> bool:
    """Does torch.vmap hide the values of one of the arguments, under whatever other transforms?"""
    functorch = torch._C._functorch
    for tensor in tensors_of(args):
        while functorch.is_functorch_wrapped_tensor(tensor):
            if functorch.is_batchedtensor(tensor):
                return True
            tensor = functorch.get_unwrapped(tensor)
    return False


def _fixed_bias(bias: Weight | None, kwargs: dict[str, Any]) -> str:
    if bias is None:
        return "what is added to its output inside the op is no parameter of its own"
    if kwargs and kwargs.get("beta", 1) != 1:
        return "its bias is scaled inside the op (beta)"
    if not bias.zero and not bias.tensor.requires_grad:
        return "its bias is frozen (requires_grad=False)"
    return ""


def hidden_reason(weight: Weight) -> str:
    """Why a parameter that no linear op used as its weight is left alone."""
    if not weight.used_by:
        return "not used in this pass"
    if weight.used_by in ops.LINEAR and weight.used_by not in _HIDDEN:
        return f"the input of {weight.used_by}, not its weight"
    return _HIDDEN.get(weight.used_by, f"used by {weight.used_by}, no linear op")


_HIDDEN = {
    **dict.fromkeys(
        ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
        "used inside a recurrent op that hides its outputs",
    ),
    "multi_head_attention_forward": "used inside multi_head_attention_forward, which hides its output (packed in_proj)",
    "embedding": "a look-up table (embedding), no linear op",
    "embedding_bag": "a look-up table (embedding_bag), no linear op",
}


_REAL = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def no_real_values(weight: Weight, output: Tensor) -> str:
    """Why values of this type have no std to scale; "" for real floating ones."""
    if output.is_nested:
        return "its output is a nested tensor"
    if type(output) is Tensor and output.dtype in _REAL and weight.tensor.dtype in _REAL:
        return ""
    if is_sharded(output):
        return "its output is spread over ranks (tensor parallel)"
    if weight.tensor.is_floating_point() and output.is_floating_point():
        return ""
    what, tensor = ("its output", output) if weight.tensor.is_floating_point() else ("its weight", weight.tensor)
    return f"{what} is {'complex' if tensor.is_complex() else 'of an integer type'} ({tensor.dtype})"
