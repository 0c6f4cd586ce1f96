"""The small callbacks: the usual training steps, device placement, batch transforms, a single batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .devices import default_device, to_device
from .events import Callback, CancelFitException
from .loop import Loop


class TrainCB(Callback):
    """Teaches a Learner the five steps. Runs at predict, get_loss, backward, step and zero_grad.

    Args:
        n_inp: how many of the batch's elements are the model's inputs (>= 1); the rest goes to the loss function.

    Example:
        >>> TrainCB()
        TrainCB(n_inp=1)
    """

    order = -20

    def __init__(self, n_inp: int = 1) -> None:
        if not isinstance(n_inp, int) or n_inp < 1:
            raise ValueError(f"`n_inp` must be an integer >= 1, got {n_inp!r}.")
        self.n_inp = n_inp

    def predict(self, learn: Loop) -> None:
        learn.preds = learn.model(*learn.batch[: self.n_inp])

    def get_loss(self, learn: Loop) -> None:
        learn.loss = learn.loss_func(learn.preds, *learn.batch[self.n_inp :])

    def backward(self, learn: Loop) -> None:
        learn.loss.backward()

    def step(self, learn: Loop) -> None:
        learn.opt.step()

    def zero_grad(self, learn: Loop) -> None:
        learn.opt.zero_grad()


class DeviceCB(Callback):
    """Puts the model and each batch on a device. Runs at before_fit and before_batch.

    Args:
        device: default: the accelerator that torch finds, else the CPU.
    """

    order = TrainCB.order + 10

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = default_device() if device is None else torch.device(device)

    def before_fit(self, learn: Loop) -> None:
        if hasattr(learn.model, "to"):
            learn.model.to(self.device)

    def before_batch(self, learn: Loop) -> None:
        learn.batch = to_device(learn.batch, self.device)


class BatchTransformCB(Callback):
    """Replaces each batch by `tfm(batch)`, on the device. Runs at before_batch.

    Args:
        tfm: takes a batch and returns one.
        on_train: apply it while training.
        on_val: apply it while validating.

    Raises:
        ValueError: neither `on_train` nor `on_val`: it would do nothing.
    """

    order = DeviceCB.order + 1

    def __init__(self, tfm: Callable[[Any], Any], on_train: bool = True, on_val: bool = True) -> None:
        if not callable(tfm):
            raise TypeError(f"`tfm` must be a function of the batch, got {tfm!r} ({type(tfm).__name__}).")
        if not (on_train or on_val):
            raise ValueError("BatchTransformCB(on_train=False, on_val=False) would do nothing; set one of them.")
        self.tfm, self.on_train, self.on_val = tfm, on_train, on_val

    def before_batch(self, learn: Loop) -> None:
        if self.on_train if learn.training else self.on_val:
            learn.batch = self.tfm(learn.batch)


class SingleBatchCB(Callback):
    """Ends the fit after its first batch; that batch's after_batch of all other callbacks runs. Runs at after_batch."""

    order = 100

    def after_batch(self, learn: Loop) -> None:
        raise CancelFitException
