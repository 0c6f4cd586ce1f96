"""The training loop: stages, events, steps. It knows no callback by name. With its events, it is this:

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
The five steps (predict, get_loss, backward, step, zero_grad) are taught by a callback (TrainCB) or by a subclass
(TrainLearner). Callbacks run by their `order`, equal ones as listed. A callback that has to wrap a step
(autocast) puts its own in place with `learn.for_this_fit(predict=...)` in `before_fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn, optim

from .batches import empty_loader
from .checks import check_arguments, check_loaders, check_rate, check_steps
from .events import CANCEL, Callback, as_callbacks, fire_every
from .hearing import Hearing


class Loop(Hearing):
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
        is_main: False on every process of a distributed fit but one, the one that prints and writes files.
        rehearsing, resumed: True in a fit that leaves no trace (`lr_find`, `survey`); in one that goes on from a checkpoint.
        stepped: has this fit taken a training step?

    Raises:
        TypeError: an argument of a wrong kind, such as a class in the place of what it makes.
    """

    n_inp = 1
    is_main = True
    rehearsing = resumed = stepped = False
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
        check_arguments(self)
        super().__init__(as_callbacks(cbs))
        self.n_epochs, self.epochs = 0, range(0)
        self.do_train = self.do_valid = False
        self.history: list[dict[str, Any]] = []

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
            TypeError: an argument of the learner, or `lr`, is of a wrong kind.

        Side effects: the model is trained in place and left in the mode of its last pass; a new optimizer is made.
        An exception in a callback keeps its type and gains a note that names the callback and the event.
        """
        if not isinstance(n_epochs, int) or n_epochs < 0:
            raise ValueError(f"`n_epochs` must be an integer >= 0, got {n_epochs!r}.")
        check_arguments(self)
        check_rate(lr)
        inside = bool(self._events)  # a callback's fit, which leaves all of the outer one as it was
        outside = {k: v for k, v in vars(self).items() if inside or k in ("cbs", "_events", "_this_fit")}
        self.cbs, self._this_fit, self.stepped = [*self.cbs, *as_callbacks(cbs)], ExitStack(), False
        try:
            self._listen()
            self.do_train, self.do_valid = bool(train and n_epochs), bool(valid and n_epochs)
            self.n_inp = next((cb.n_inp for cb in self.cbs if hasattr(cb, "n_inp")), type(self).n_inp)
            check_steps(self)
            check_loaders(self)
            self.n_epochs, self.epochs, self.history = n_epochs, range(n_epochs), []
            if self.opt_func is not None:
                rate = self.lr if lr is None else lr  # numpy's numbers could not be read back from a checkpoint
                self.opt = self.opt_func(self.model.parameters(), float(rate) if isinstance(rate, Real) else rate)
            self._stage(
                "fit", lambda: self.all_epochs()
            )  # looked up behind before_fit, where a callback may replace it
        finally:
            self._this_fit.close()
            vars(self).update(outside)

    def all_epochs(self, first: int = 0) -> None:
        """The epochs of this fit from `first` on, each with its passes over the training and the validation loader."""
        for epoch in self.epochs[first:]:
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
            self.stepped = True
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
            if handlers := self.heard(f"cleanup_{stage}"):
                fire_every(f"cleanup_{stage}", handlers, self, failure)

    # What a callback may use

    def gather(self, values: Any, samples: bool = False) -> Any:
        """The tensors in `values` from all processes of a distributed fit, one behind the other; here: as they are.

        Args:
            samples: they are of this batch's samples, one row each: those that a sampler repeated are left out.
        """
        return values

    @property
    def training(self) -> bool:
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.model.train(mode)

    xb = property(lambda self: self.batch[: self.n_inp])
    yb = property(lambda self: self.batch[self.n_inp :])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, lr={self.lr}, cbs={self.cbs})"
