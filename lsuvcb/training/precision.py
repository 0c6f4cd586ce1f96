"""Mixed precision and gradient clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .callbacks import DeviceCB
from .events import Callback
from .loop import Loop
from .metrics import model_device
from .train_learner import MomentumLearner


class MixedPrecisionCB(Callback):
    """Runs the model and the loss under torch.autocast. Runs at before_fit and after_backward.

    Args:
        dtype: torch.bfloat16, or torch.float16, whose small gradients need a GradScaler: it is made for each fit, steps are
            taken through it, and its state is kept in checkpoints.

    Attributes:
        scaler: the GradScaler of the last fit; None under bfloat16.

    LSUV's batch runs under the same autocast. In `after_backward` of the callbacks behind this one gradients are unscaled.

    Raises:
        ValueError: float16 for a MomentumLearner, which keeps gradients from step to step. Use
            `opt_func=partial(SGD, momentum=...)`.
    """

    order = DeviceCB.order + 5

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        if dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"`dtype` must be torch.bfloat16 or torch.float16, got {dtype}.")
        self.dtype = dtype
        self.scaler: torch.amp.GradScaler | None = None
        self._unscaled = False

    def before_fit(self, learn: Loop) -> None:
        kind = (model_device(learn.model) or torch.device("cpu")).type

        def cast(step: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                with torch.autocast(kind, dtype=self.dtype):
                    return step()

            return run

        learn.for_this_fit(predict=cast(learn.predict), get_loss=cast(learn.get_loss))
        self.scaler, self._unscaled = None, False
        if self.dtype is torch.float16 and learn.do_train:
            if isinstance(learn, MomentumLearner):
                raise ValueError(
                    "MixedPrecisionCB(torch.float16) scales each step's gradients, and a MomentumLearner keeps them: use "
                    "TrainLearner with opt_func=partial(torch.optim.SGD, momentum=0.85), or torch.bfloat16."
                )
            self.scaler = torch.amp.GradScaler(kind)
            learn.for_this_fit(backward=self._scaled(learn, learn.backward), step=self._step(learn))

    def _scaled(self, learn: Loop, backward: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            assert self.scaler is not None
            if self._unscaled:  # the last batch was cancelled before its step: its gradients stay, scaled like the next
                self.scaler.update()
                scale = self.scaler.scale(torch.ones((), device=learn.loss.device))
                parameters = [p for group in learn.opt.param_groups for p in group["params"] if p.grad is not None]
                torch._foreach_mul_([p.grad for p in parameters], scale)
                self._unscaled = False
            loss, learn.loss = learn.loss, self.scaler.scale(learn.loss)
            try:
                backward()
            finally:
                learn.loss = loss

        return run

    def _step(self, learn: Loop) -> Callable[[], None]:
        def run() -> None:
            assert self.scaler is not None
            self.scaler.step(learn.opt)
            self.scaler.update()
            self._unscaled = False

        return run

    def after_backward(self, learn: Loop) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(learn.opt)
            self._unscaled = True

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict() if self.scaler is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


class GradientClipCB(Callback):
    """Limits the gradients before each step. Runs at after_backward.

    Args:
        max_norm: the largest norm of all gradients together; larger ones are scaled down to it. > 0.
        max_value: the largest magnitude of each value instead; larger ones are cut off. > 0.

    Attributes:
        norm: of all gradients of the last step before clipping (with `max_norm`), a 0-d tensor on its device.
    """

    order = MixedPrecisionCB.order + 10

    def __init__(self, max_norm: float | None = None, *, max_value: float | None = None) -> None:
        given = [v for v in (max_norm, max_value) if v is not None]
        if len(given) != 1 or not given[0] > 0:
            raise ValueError(
                f"give one of `max_norm` and `max_value`, > 0, got max_norm={max_norm!r}, max_value={max_value!r}."
            )
        self.max_norm, self.max_value = max_norm, max_value
        self.norm: torch.Tensor | None = None

    def after_backward(self, learn: Loop) -> None:
        parameters = learn.model.parameters()
        if self.max_norm is not None:
            self.norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        else:
            assert self.max_value is not None
            torch.nn.utils.clip_grad_value_(parameters, self.max_value)
