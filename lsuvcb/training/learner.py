"""The training loop. With its events, it is this:

    fit:
        look up every callback's events, make the optimizer
        before_fit
        for epoch in range(n_epochs):
            for the training loader, then for the validation loader without gradients:
                model.train() or model.eval()
                before_epoch
                for batch in loader:
                    before_batch                        prepares learn.batch, and only that
                    predict()                           learn.preds = model(inputs)
                    after_predict
                    get_loss()                          learn.loss = loss_func(preds, targets)
                    after_loss
                    if training:
                        backward()
                        after_backward
                        step()
                        after_step
                        zero_grad()
                    after_batch
                    cleanup_batch
                after_epoch
                cleanup_epoch
        after_fit
        cleanup_fit

`after_*` is reached on success only; `cleanup_*` runs always. CancelFitException, CancelEpochException and
CancelBatchException end their stage: its `after_*` is skipped, its `cleanup_*` is not, and the loop goes on behind it.
The five steps (predict, get_loss, backward, step, zero_grad) are taught by a callback (TrainCB) or by a subclass of
Learner (TrainLearner). Callbacks run by their `order`, equal ones as listed. A callback that has to wrap a step
(autocast) sets it on the learner in `before_fit` and deletes it in `cleanup_fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn, optim

from .batches import empty_loader, length
from .events import CANCEL, EVENTS, STEPS, Callback, Handler, as_callbacks, name_callback, owner_name


class Learner:
    """A model, its data and its loss function, trained by `fit`; what happens on the way is up to the callbacks.

    Args:
        model: any nn.Module.
        dls: an object with a `.train` and a `.valid` loader (DataLoaders). A loader is any iterable of batches.
        loss_func: called with the predictions and the batch's targets; gives the scalar loss.
        lr: learning rate > 0, given to `opt_func`.
        cbs: callbacks of every fit. A bare Learner knows no step: it takes a TrainCB to learn anything.
        opt_func: called with the model's parameters and `lr`, at the start of each fit. None: no optimizer is made.

    Attributes:
        batch, xb, yb, preds, loss: of the batch at hand; `xb` are its inputs (the first `n_inp`, see TrainCB),
            `yb` the rest.
        epoch, n_epochs, epochs, iter, dl, opt: where the loop is, in which loader, with which optimizer.
        training: the model's mode; setting it switches `model.train()` / `model.eval()`.
        do_train, do_valid: what this fit does.
        history: rows of the last fit, one for each epoch and loader, written by MetricsCB.

    Example:
        >>> from lsuvcb.training.callbacks import TrainCB
        >>> from types import SimpleNamespace
        >>> _ = torch.manual_seed(0)
        >>> data = [(torch.ones(4, 1), torch.ones(4, 1))] * 10
        >>> learn = Learner(nn.Linear(1, 1), SimpleNamespace(train=data, valid=data), lr=0.1, cbs=TrainCB())
        >>> learn.fit(3)
        >>> round(learn.loss.item(), 4)
        0.0
    """

    n_inp = 1
    batch: Any
    preds: Any
    loss: torch.Tensor
    opt: optim.Optimizer
    dl: Any
    epoch: int
    iter: int
    metrics: Any

    def __init__(
        self,
        model: nn.Module,
        dls: Any,
        loss_func: Callable[..., torch.Tensor] = F.mse_loss,
        lr: float = 0.1,
        cbs: Callback | Iterable[Callback] | None = None,
        opt_func: Callable[..., optim.Optimizer] | None = optim.SGD,
    ) -> None:
        self.model, self.dls, self.loss_func, self.lr, self.opt_func = model, dls, loss_func, lr, opt_func
        self.cbs = as_callbacks(cbs)
        self.n_epochs, self.epochs = 0, range(0)
        self.do_train = self.do_valid = False
        self.history: list[dict[str, Any]] = []
        self._events: dict[str, list[Handler]] | None = None

    # The loop

    def fit(
        self,
        n_epochs: int = 1,
        train: bool = True,
        valid: bool = True,
        cbs: Callback | Iterable[Callback] | None = None,
        lr: float | None = None,
    ) -> None:
        """Train for `n_epochs`, each followed by a pass over the validation loader.

        Args:
            n_epochs: >= 0.
            train: False leaves training out.
            valid: False leaves validation out.
            cbs: more callbacks, for this fit only.
            lr: for this fit only; None means `learn.lr`.

        Raises:
            ValueError: a loader gave no batch, a step that nothing teaches, a step taught twice.

        Side effects: the model is trained in place and left in the mode of its last pass; a new optimizer is made.
        An exception in a callback keeps its type and gains a note that names the callback and the event.
        """
        if not isinstance(n_epochs, int) or n_epochs < 0:
            raise ValueError(f"`n_epochs` must be an integer >= 0, got {n_epochs!r}.")
        outside = self.cbs, self._events
        self.cbs = [*self.cbs, *as_callbacks(cbs)]
        try:
            self._events = {name: self._handlers(name) for name in (*EVENTS, *STEPS)}
            self.do_train, self.do_valid = bool(train and n_epochs), bool(valid and n_epochs)
            self.n_inp = next((cb.n_inp for cb in self.cbs if hasattr(cb, "n_inp")), type(self).n_inp)
            self._check_ready()
            self.n_epochs, self.epochs, self.history = n_epochs, range(n_epochs), []
            if self.opt_func is not None:
                self.opt = self.opt_func(self.model.parameters(), self.lr if lr is None else lr)
            self._stage("fit", self._fit)
        finally:
            self.cbs, self._events = outside

    def _fit(self) -> None:
        for epoch in self.epochs:
            self.epoch = epoch
            if self.do_train:
                self._one_epoch(True)
            if self.do_valid:
                with torch.no_grad():
                    self._one_epoch(False)

    def _one_epoch(self, training: bool) -> None:
        self.training = training
        self.dl = self.dls.train if training else self.dls.valid
        self._stage("epoch", self._batches)

    def _batches(self) -> None:
        self.iter = -1
        for i, batch in enumerate(self.dl):
            self.iter, self.batch = i, batch
            self._stage("batch", self._one_batch)
        if self.iter < 0:
            raise ValueError(empty_loader(self.dls, "train" if self.training else "valid"))

    def _one_batch(self) -> None:
        self.predict()
        self.callback("after_predict")
        self.get_loss()
        self.callback("after_loss")
        if self.training:
            self.backward()
            self.callback("after_backward")
            self.step()
            self.callback("after_step")
            self.zero_grad()

    def _stage(self, stage: str, body: Callable[[], None]) -> None:
        failure: BaseException | None = None
        try:
            self.callback(f"before_{stage}")
            body()
            self.callback(f"after_{stage}")
        except CANCEL[stage]:
            pass
        except BaseException as e:
            failure = None if isinstance(e, tuple(CANCEL.values())) else e
            raise
        finally:
            self._cleanup(f"cleanup_{stage}", failure)

    # Events

    def _handlers(self, event: str) -> list[Handler]:
        return [getattr(cb, event) for cb in sorted(self.cbs, key=lambda cb: cb.order) if hasattr(cb, event)]

    def _heard(self, event: str) -> list[Handler]:
        return self._handlers(event) if self._events is None or event not in self._events else self._events[event]

    def callback(self, event: str) -> None:
        """Fire `event`: every callback that has a method of this name is called with the learner."""
        for handler in self._heard(event):
            try:
                handler(self)
            except Exception as e:
                name_callback(e, handler, event)
                raise

    def _cleanup(self, event: str, failure: BaseException | None) -> None:
        # As `callback`, but one that fails keeps no other from cleaning up, and hides no `failure` that led here.
        first: Exception | None = None
        for handler in self._heard(event):
            try:
                handler(self)
            except Exception as e:
                name_callback(e, handler, event)
                first = first or e
        if first is not None and failure is None:
            raise first
        if first is not None and failure is not None:
            failure.add_note(f"Then, while cleaning up: {type(first).__name__}: {first} ({first.__notes__[-1]})")

    # What must hold

    def _check_ready(self) -> None:
        for step in STEPS if self.do_train else STEPS[:2] if self.do_valid else ():
            teachers = [owner_name(handler) for handler in self._heard(step)]
            if hasattr(type(self), step):
                teachers.insert(0, type(self).__name__)
            if not teachers and step not in vars(self):
                raise ValueError(
                    f"Nothing teaches this {type(self).__name__} to `{step}`: add TrainCB() to its callbacks, or use "
                    f"TrainLearner. Its callbacks: {', '.join(type(cb).__name__ for cb in self.cbs) or 'none'}."
                )
            if len(teachers) > 1:
                raise ValueError(f"`{step}` must be taught by one, got {' and '.join(teachers)}; keep one of them.")
        for name in [name for name, used in (("train", self.do_train), ("valid", self.do_valid)) if used]:
            loader = getattr(self.dls, name, None)
            if loader is None:
                raise ValueError(f"fit({name}=True) needs `dls.{name}`, got None; pass {name}=False to leave it out.")
            if length(loader) == 0:
                raise ValueError(empty_loader(self.dls, name))

    # What a callback may use

    def __getattr__(self, name: str) -> Any:
        if name in STEPS:
            return partial(self.callback, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def training(self) -> bool:
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.model.train(mode)

    @property
    def xb(self) -> Sequence[Any]:
        return self.batch[: self.n_inp]

    @property
    def yb(self) -> Sequence[Any]:
        return self.batch[self.n_inp :]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, lr={self.lr}, cbs={self.cbs})"


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
