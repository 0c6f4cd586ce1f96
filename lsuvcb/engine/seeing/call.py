"""One call of a torch function in a forward, and which of its arguments have a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import ops
from .provenance import Source, Trace


class Call:
    """func(*args, **kwargs)."""

    __slots__ = ("args", "func", "kwargs", "op", "traces")

    def __init__(
        self, op: ops.Op, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], traces: list[tuple[Tensor, Trace]]
    ) -> None:  # fmt: skip
        self.op, self.func, self.args, self.kwargs, self.traces = op, func, args, kwargs, traces

    def run(self) -> Any:
        return self.func(*self.args, **self.kwargs)

    def has(self, tensor: Tensor) -> bool:
        """Is it an argument itself, not an item of one?"""
        return any(value is tensor for value in (*self.args, *self.kwargs.values()))

    def on(self, tensor: Tensor) -> Callable[[Tensor], Any]:
        """The call as a function of this argument; the other arguments stay."""
        func, args, kwargs = self.func, self.args, self.kwargs
        at = next((i for i, value in enumerate(args) if value is tensor), None)
        if at is None:
            name = next(name for name, value in kwargs.items() if value is tensor)
            return lambda values: func(*args, **{**kwargs, name: values})
        return lambda values: func(*args[:at], values, *args[at + 1 :], **kwargs)

    @property
    def sources(self) -> list[tuple[Tensor, Source]]:
        return [(t, trace.source) for t, trace in self.traces if isinstance(trace.source, Source)]

    @property
    def uses_weights(self) -> bool:
        """Is one of its arguments a weight's values, or, where it has a place for a kernel, a weight's times a signal?"""
        mixed = self.op.name in ops.KERNEL_AT
        return any(trace.source is not None or (mixed and trace.mixed is not None) for _, trace in self.traces)
