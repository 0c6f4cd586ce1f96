"""A GPU without a GPU: tensors that have a device, shapes and dtypes but no values, and a list of the host's waits.

A program runs on them as on a GPU, and takes the branches that it takes there. What would make the host wait for a real
device (a value read, a copy to the host, a shape that depends on values) is noted, and answered with made-up values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

VALUE = 0.0  # of every number that is read from the device; a truth value is True
SHAPED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}


class Waits(TorchDispatchMode):
    """Notes the ops for which the host of a GPU would have to wait, in `names`; any device but the CPU counts as one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        inputs = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        source = args[1] if name == "copy_" else args[0] if args else None
        goes_to = args[0].device.type if name == "copy_" else torch.device(kwargs.get("device") or "cpu").type
        copies = name in ("to", "_to_copy", "copy_") and isinstance(source, Tensor) and source.device.type == "cpu"
        if copies and goes_to != "cpu" and not kwargs.get("non_blocking"):
            self.names.append(f"{name} to the device")
        if all(t.device.type == "cpu" for t in inputs):
            return func(*args, **kwargs)
        if name in ("_local_scalar_dense", "equal"):
            self.names.append(name)
            return True if name == "equal" or inputs[0].dtype == torch.bool else VALUE
        if str(kwargs.get("device")) == "cpu":
            self.names.append(f"{name} to the host")
            return torch.full(inputs[0].shape, VALUE, dtype=kwargs.get("dtype") or inputs[0].dtype, device="cpu")
        masked = name.startswith("index") and any(t.dtype == torch.bool for t in inputs[1:])
        if name in SHAPED_BY_VALUES or masked:
            self.names.append(name)
        return func(*args, **kwargs)


needs_fake_cuda_ops = pytest.mark.skipif(
    torch.__version__ < (2, 10), reason="before torch 2.10 some ops on fake CUDA tensors ask for a driver"
)


@contextmanager
def fake_cuda() -> Iterator[Waits]:
    """New tensors are on a CUDA device that is not there, whose generator has no state; gives the waits so far.

    They are torch's FakeTensors, as its compiler runs programs on them. They know no backward pass; the device "meta" does.
    """
    state = torch.zeros(16, dtype=torch.uint8)
    with (
        patch("torch.cuda.get_rng_state", lambda device: state),
        patch("torch.cuda.set_rng_state", lambda state, device: None),
        FakeTensorMode(),
        torch.device("cuda"),
        Waits() as waits,
    ):
        yield waits
