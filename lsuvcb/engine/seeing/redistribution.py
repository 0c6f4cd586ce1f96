"""`DTensor.redistribute` moves values between ranks and is no torch function: for the time of a pass it is called as one."""

from __future__ import annotations

import functools
from typing import Any

from torch.overrides import handle_torch_function, has_torch_function


class Redistributions:
    """While they show, a TorchFunctionMode is handed each call, as it is handed those of `torch.relu`."""

    def __init__(self) -> None:
        from torch.distributed.tensor import DTensor

        self._type, self._own = DTensor, DTensor.redistribute

    def show(self) -> None:
        own = self._own

        @functools.wraps(own)
        def redistribute(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("async_op", None)  # what is still on its way could be neither measured nor corrected
            if not has_torch_function((tensor,)):  # inside an op
                return own(tensor, *args, **kwargs)
            return handle_torch_function(own, (tensor,), tensor, *args, **kwargs)

        self._type.redistribute = redistribute  # type: ignore[method-assign, assignment]

    def hide(self) -> None:
        self._type.redistribute = self._own  # type: ignore[method-assign]
