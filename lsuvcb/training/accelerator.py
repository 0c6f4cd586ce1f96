"""AcceleratorCB: the same fit on several processes, by Hugging Face Accelerate."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..loaders import DataLoaders, TensorLoader
from .callbacks import DeviceCB
from .events import Callback
from .loop import Loop
from .precision import MixedPrecisionCB


class AcceleratorCB(Callback):
    """Trains on all processes of `accelerate launch` or torchrun, on one without them.

    Runs at before_fit, after_backward and cleanup_fit.

    For the time of the fit the model is wrapped (DDP), the loaders give each process its share (a batch of the fit is then
    `batch_size` times the number of processes), metrics and losses are those of all processes together, and one process
    prints, draws and writes. It places model and batches on the process's device; a DeviceCB is not needed. LSUV takes its
    moments over all processes, and afterwards all hold equal weights.

    Args:
        accelerator: an accelerate.Accelerator of your own. None: one is made at the first fit, of `kwargs`.
        **kwargs: for accelerate.Accelerator: `mixed_precision="bf16"`, `cpu=True`, ...

    Raises:
        ImportError: accelerate is not installed.
        ValueError: several processes and a loader that is neither a DataLoader nor a TensorLoader; a MixedPrecisionCB beside
            this callback.

    Caveats: a last batch that does not divide by the number of processes is filled up with samples from the beginning
    (metrics do not count them, the training step and the mean loss do). A checkpoint keeps the random generators of the
    main process.
    """

    order = DeviceCB.order + 2

    def __init__(self, accelerator: Any = None, **kwargs: Any) -> None:
        if accelerator is not None and kwargs:
            raise ValueError(f"`accelerator` is made already; {', '.join(kwargs)} would do nothing.")
        self.accelerator, self.kwargs = accelerator, kwargs
        self._inner: tuple[torch.nn.Module, dict[str, Any]] | None = None

    def before_fit(self, learn: Loop) -> None:
        if any(isinstance(cb, MixedPrecisionCB) for cb in learn.cbs):
            raise ValueError('use AcceleratorCB(mixed_precision="bf16") instead of a MixedPrecisionCB beside it.')
        if self.accelerator is None:
            self.accelerator = _accelerate().Accelerator(**self.kwargs)
        acc = self.accelerator
        loaders = [self._shares(getattr(learn.dls, name, None), name) for name in ("train", "valid")]
        opt = getattr(learn, "opt", None)
        given = [learn.model, *loaders, *([opt] if opt is not None else [])]
        self._inner = learn.model, dict(vars(learn.model))
        model, train, valid, *opts = acc.prepare(*given)
        learn.for_this_fit(
            model=model, dls=DataLoaders(train, valid), is_main=acc.is_main_process, gather=self._gather,
            backward=lambda: acc.backward(learn.loss), **({"opt": opts[0]} if opts else {}),
        )  # fmt: skip

    def _shares(self, loader: Any, name: str) -> Any:
        if isinstance(loader, TensorLoader):
            loader = loader.as_dataloader()
        if self.accelerator.num_processes > 1 and loader is not None and not isinstance(loader, DataLoader):
            raise ValueError(
                f"AcceleratorCB gives each process its share of `dls.{name}`, which takes a DataLoader or a TensorLoader, "
                f"got {type(loader).__name__}."
            )
        return loader

    def _gather(self, values: Any, samples: bool = False) -> Any:
        acc = self.accelerator
        if acc.num_processes == 1:
            return values
        return acc.gather_for_metrics(values) if samples else acc.gather(values)

    def after_backward(self, learn: Loop) -> None:
        self.accelerator.unscale_gradients()

    def cleanup_fit(self, learn: Loop) -> None:
        if self._inner is None:
            return
        self.accelerator.free_memory()
        model, attributes = self._inner
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):  # what `prepare` leaves on a model
            vars(model).pop(name, None)
            if name in attributes:
                vars(model)[name] = attributes[name]
        self._inner = None

    def __deepcopy__(self, memo: dict[int, Any]) -> AcceleratorCB:
        twin = copy.copy(self)
        twin.accelerator = self.accelerator  # there is one for each process
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"accelerator": None, "_inner": None}

    def __repr__(self) -> str:
        return f"AcceleratorCB({', '.join(f'{k}={v!r}' for k, v in self.kwargs.items())})"


def _accelerate() -> Any:
    try:
        import accelerate
    except ImportError:
        raise ImportError("AcceleratorCB runs on Hugging Face Accelerate: pip install 'lsuvcb[accelerate]'") from None
    return accelerate
