"""Learners that know the five steps themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn, optim

from .events import Callback
from .learner import Learner


class TrainLearner(Learner):
    """A Learner that knows the usual five steps itself, without a TrainCB."""

    def predict(self) -> None:
        self.preds = self.model(*self.xb)

    def get_loss(self) -> None:
        self.loss = self.loss_func(self.preds, *self.yb)

    def backward(self) -> None:
        self.loss.backward()

    def step(self) -> None:
        self.opt.step()

    def zero_grad(self) -> None:
        self.opt.zero_grad()


class MomentumLearner(TrainLearner):
    """A TrainLearner with momentum: gradients are not zeroed after a step but multiplied by `mom` (0 <= mom < 1)."""

    # Written out, not delegated: delegated arguments go by keyword only, and lessons pass `loss_func` by its place.
    def __init__(
        self,
        model: nn.Module,
        dls: Any,
        loss_func: Callable[..., torch.Tensor] = F.mse_loss,
        lr: float = 0.1,
        cbs: Callback | Iterable[Callback] | None = None,
        opt_func: Callable[..., optim.Optimizer] | None = optim.SGD,
        mom: float = 0.85,
    ) -> None:
        if not 0 <= mom < 1:
            raise ValueError(f"`mom` must be in [0, 1), got {mom}.")
        super().__init__(model, dls, loss_func, lr, cbs, opt_func)
        self.mom = mom

    def zero_grad(self) -> None:
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        if grads:
            torch._foreach_mul_(grads, self.mom)
