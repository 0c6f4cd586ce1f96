"""The ops that the eye knows: where a linear op keeps its weight and its bias, and what the other ones do to a tensor.

To teach the eye a new linear op, add a row to `LINEAR`: its name as torch spells it and the places of its weight(s) and bias.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from torch.nn import functional as F

Key = int | str | tuple[int, int]  # a positional argument, a keyword, or an item of a list in a positional argument


class Row(NamedTuple):
    """One linear op: the (position, keyword) of each argument that may be the weight, and of the bias."""

    weights: tuple[tuple[int, str], ...]
    bias: tuple[int, str] | None = None


_CONV = Row(((1, "weight"),), (2, "bias"))
LINEAR: dict[str, Row] = {
    "linear": Row(((1, "weight"),), (2, "bias")),
    "bilinear": Row(((2, "weight"),), (3, "bias")),
    "conv1d": _CONV,
    "conv2d": _CONV,
    "conv3d": _CONV,
    "conv_transpose1d": _CONV,
    "conv_transpose2d": _CONV,
    "conv_transpose3d": _CONV,
    "deform_conv2d": Row(((1, "weight"),), (4, "bias")),
    "matmul": Row(((0, "input"), (1, "other"))),
    "linalg_matmul": Row(((0, "input"), (1, "other"))),
    "__rmatmul__": Row(((0, "self"), (1, "other"))),
    "mm": Row(((0, "input"), (1, "mat2"))),
    "_sparse_mm": Row(((0, "sparse"), (1, "dense"))),
    "bmm": Row(((0, "input"), (1, "mat2"))),
    "mv": Row(((0, "input"), (1, "vec"))),
    "inner": Row(((0, "input"), (1, "other"))),
    "tensordot": Row(((0, "a"), (1, "b"))),
    "addmm": Row(((1, "mat1"), (2, "mat2")), (0, "input")),
    "addmv": Row(((1, "mat"), (2, "vec")), (0, "input")),
    # each matrix of a stack for its own rows of the input: mixtures of experts; the last is transformers' own
    "grouped_mm": Row(((0, "mat_a"), (1, "mat_b")), (3, "bias")),
    "_grouped_mm": Row(((0, "self"), (1, "mat2")), (3, "bias")),
    "grouped_mm_fallback": Row(((0, "input"), (1, "weight"))),
    "baddbmm": Row(((1, "batch1"), (2, "batch2")), (0, "input")),
    "addbmm": Row(((1, "batch1"), (2, "batch2")), (0, "input")),
    "einsum": Row(()),  # its operands are looked up below
    "multi_head_attention_forward": Row(((11, "out_proj_weight"),), (12, "out_proj_bias")),
}
# Those whose every operand is a factor: one that is all zero silences the weight.
PRODUCTS = frozenset(("bilinear", "einsum"))
# Those that have a place for a kernel: what stands there is one also where it is no parameter, but made by another layer.
KERNEL_AT = dict.fromkeys(("linear", *(n for n in LINEAR if "conv" in n)), 1)
# Views, copies, casts and repeats of a whole weight: what is linear in the result is linear in the weight.
VIEWS = frozenset(
    "t T mT H transpose swapaxes swapdims movedim moveaxis permute adjoint view view_as reshape reshape_as flatten "
    "unflatten ravel squeeze unsqueeze contiguous clone detach alias data to type type_as float double half bfloat16 "
    "requires_grad_ cpu cuda as_subclass expand expand_as broadcast_to repeat tile flip roll redistribute".split()
)
# Views and copies of a part of a weight.
PARTS = frozenset("__getitem__ select narrow chunk split unbind index_select tensor_split split_with_sizes".split())
# Reading these, or taking them for a template, uses no value.
LOOKS = frozenset(
    "grad grad_fn shape dtype device is_leaf requires_grad size dim ndim ndimension numel nelement stride storage_offset "
    "is_contiguous is_floating_point is_complex element_size itemsize nbytes data_ptr get_device is_cuda is_cpu is_sparse "
    "is_meta is_quantized is_nested layout names __len__ __hash__ untyped_storage _version "
    "new_zeros new_ones new_empty new_full new_tensor zeros_like ones_like empty_like full_like rand_like randn_like".split()
)
# These take the shape, type or device of any argument but the first, and no value.
TEMPLATES = frozenset("type_as expand_as view_as reshape_as to".split())
# Linear in the one operand, where the others are no part of it: products, quotients, masks.
FACTORS = frozenset("mul multiply div divide true_divide neg negative masked_fill where tril triu".split())
SUMS = frozenset(("sum", "mean"))
QUOTIENTS = frozenset("div divide true_divide".split())
TABLES = frozenset(("embedding", "embedding_bag"))
NORMS = frozenset("batch_norm layer_norm group_norm instance_norm rms_norm".split())
_DROPOUT = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout".split()
)


class Op(NamedTuple):
    """What is known of a torch function by its name.

    Attributes:
        name: as torch spells it; of a tensor's property, the property's.
        plain: without what marks it as a method in place or an operator: "add" for `add_`, `__add__` and `__iadd__`.
        looks, views, is_part, template: see LOOKS, VIEWS, PARTS, TEMPLATES.
        writes: it changes its first argument.
    """

    name: str
    plain: str
    looks: bool
    views: bool
    is_part: bool
    template: bool
    writes: bool

    @property
    def is_dropout(self) -> bool:
        return self.plain in _DROPOUT


_OPERATORS = {"truediv": "div", "matmul": "matmul"}


@lru_cache(4096)
def op_of(func: Callable[..., Any]) -> Op:
    """What is known of the function that a TorchFunctionMode was handed."""
    name = op_name(func)
    plain = name
    if name.startswith("__") and name.endswith("__"):
        plain = name.strip("_")
        # `__iadd__` and `__radd__` are `add`; a function of its own may well begin with these letters
        plain = plain[1:] if plain[:1] in "ir" and plain[1:] in _ARITHMETIC else plain
        plain = _OPERATORS.get(plain, plain)
    elif name.endswith("_"):
        plain = name[:-1]
    return Op(
        name, plain, name in LOOKS, name in VIEWS, name in PARTS, name in TEMPLATES, writes(name)
    )  # fmt: skip


_ARITHMETIC = frozenset("add sub mul div truediv pow matmul and or xor".split())


def op_name(func: Callable[..., Any]) -> str:
    """The name of the function that a TorchFunctionMode was handed; for a property of a tensor, the property's."""
    name = getattr(func, "__name__", "") or str(func)
    if name == "__get__":
        return getattr(func.__self__, "__name__", name)  # type: ignore[attr-defined]
    return name.partition(".")[0]  # an overload of torch.ops has its own name behind a dot


def writes(name: str) -> bool:
    """Does this op change its first argument? torch spells such methods with a `_` behind; operators like `+=` with an `i`."""
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i") or name == "__setitem__"


class Slots(NamedTuple):
    """Where this call of a linear op keeps its possible weights and its bias."""

    weights: Sequence[Key]
    bias: Key | None


_MHA_PARAMETERS = list(inspect.signature(F.multi_head_attention_forward).parameters)
assert _MHA_PARAMETERS[11:13] == ["out_proj_weight", "out_proj_bias"], "torch moved its attention's arguments"


def slots(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Slots | None:
    """The slots of a call, None if `name` is no linear op."""
    if name not in LINEAR:
        return None
    if name == "einsum":
        listed = len(args) == 2 and isinstance(args[1], (list, tuple))
        if (not listed and len(args) < 3) or (listed and len(args[1]) < 2):
            return None  # a transposition or a sum, no product
        return Slots([(1, i) for i in range(len(args[1]))] if listed else range(1, len(args)), None)
    return _slots(name, len(args), tuple(kwargs))


@cache
def _slots(name: str, given: int, keywords: tuple[str, ...]) -> Slots:
    """The slots of a call of `name` with `given` positional arguments and these keywords."""
    row = LINEAR[name]
    found = [p if p < given else k for p, k in row.weights if p < given or k in keywords]
    position, keyword = row.bias or (given, "")
    return Slots(found, position if position < given else keyword if keyword in keywords else None)


def get(args: Sequence[Any], kwargs: dict[str, Any], key: Key | None) -> Any:
    if isinstance(key, int):
        return args[key]
    if key is None:
        return None
    return kwargs[key] if isinstance(key, str) else args[key[0]][key[1]]


def put(args: Sequence[Any], kwargs: dict[str, Any], key: Key, value: Any) -> tuple[list[Any], dict[str, Any]]:
    """The arguments with `value` in the place of `key`; the ones given are left as they are."""
    args, kwargs = list(args), dict(kwargs)
    if isinstance(key, tuple):
        outer, inner = key
        args[outer] = [value if i == inner else item for i, item in enumerate(args[outer])]
    elif isinstance(key, str):
        kwargs[key] = value
    else:
        args[key] = value
    return args, kwargs
