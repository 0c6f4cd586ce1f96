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
(autocast) puts its own in place with `learn.for_this_fit(predict=...)` in `before_fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn, optim

from . import lr_find, state
from .batches import empty_loader
from .checkpoint import resume_model
from .events import CANCEL, EVENTS, STEPS, Callback, Handler, as_callbacks, name_callback
from .lsuv_callback import survey_of
from .ready import check_ready

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..engine.report import Survey
    from ..engine.select import Selector

_ABSENT = object()


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
        is_main: False on every process of a distributed fit but one, the one that prints and writes files.
        rehearsing, resumed: True inside `lr_find` and `survey`; in a fit that goes on from a checkpoint.
        lr_finder: the LRFinderCB of the last `lr_find`, with its `lrs` and `losses`.

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
    is_main = True
    rehearsing = resumed = False
    lr_finder: lr_find.LRFinderCB
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
        self._before_this_fit: dict[str, Any] = {}

    # The loop

    def fit(
        self,
        n_epochs: int = 1,
        train: bool = True,
        valid: bool = True,
        cbs: Callback | Iterable[Callback] | None = None,
        lr: float | None = None,
        resume: str | Path | None = None,
    ) -> None:
        """Train for `n_epochs`, each followed by a pass over the validation loader.

        Args:
            n_epochs: >= 0.
            train: False leaves training out.
            valid: False leaves validation out.
            cbs: more callbacks, for this fit only.
            lr: for this fit only; None means `learn.lr`.
            resume: a checkpoint of CheckpointCB, or its folder, of which the newest that is whole is taken: go on behind
                its epoch as if the fit had never stopped. A folder to which this fit's own CheckpointCB writes may be
                empty: then the fit begins at the beginning. `n_epochs` counts from the beginning, too.

        Raises:
            ValueError: a loader gave no batch, a step that nothing teaches, a step taught twice.
            FileNotFoundError, CheckpointError: `resume` names nothing that can be read, or a checkpoint of another model.

        Side effects: the model is trained in place and left in the mode of its last pass; a new optimizer is made.
        An exception in a callback keeps its type and gains a note that names the callback and the event.
        """
        if not isinstance(n_epochs, int) or n_epochs < 0:
            raise ValueError(f"`n_epochs` must be an integer >= 0, got {n_epochs!r}.")
        inside = self._events is not None  # a callback's fit, which leaves all of the outer one as it was
        outside = {k: v for k, v in vars(self).items() if inside or k in ("cbs", "_events", "_before_this_fit")}
        self.cbs, self._before_this_fit = [*self.cbs, *as_callbacks(cbs)], {}
        try:
            self._events = {name: self._handlers(name) for name in (*EVENTS, *STEPS)}
            self.do_train, self.do_valid = bool(train and n_epochs), bool(valid and n_epochs)
            self.n_inp = next((cb.n_inp for cb in self.cbs if hasattr(cb, "n_inp")), type(self).n_inp)
            check_ready(self)
            saved = None if resume is None else resume_model(self, resume)  # before LSUV, which leaves it alone then
            self.n_epochs, self.epochs, self.history = n_epochs, range(n_epochs), []
            if self.opt_func is not None:
                rate = self.lr if lr is None else lr  # numpy's numbers could not be read back from a checkpoint
                self.opt = self.opt_func(self.model.parameters(), float(rate) if isinstance(rate, Real) else rate)
            self._stage("fit", partial(self._fit, saved))
        finally:
            self._undo_this_fit()
            vars(self).update(outside)

    def _fit(self, saved: dict[str, Any] | None) -> None:
        done = 0 if saved is None else state.load_training(self, saved)
        for epoch in self.epochs[done:]:
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

    def heard(self, event: str) -> list[Handler]:
        """The handlers of `event` or of a step, in the order in which they are called."""
        return self._handlers(event) if self._events is None or event not in self._events else self._events[event]

    def callback(self, event: str) -> None:
        """Fire `event`: every callback that has a method of this name is called with the learner."""
        for handler in self.heard(event):
            try:
                handler(self)
            except Exception as e:
                name_callback(e, handler, event)
                raise

    def _cleanup(self, event: str, failure: BaseException | None) -> None:
        # As `callback`, but one that fails keeps no other from cleaning up, and hides no `failure` that led here.
        first: BaseException | None = None
        for handler in self.heard(event):
            try:
                handler(self)
            except BaseException as e:  # Ctrl-C, too, waits until everything is tidied up
                name_callback(e, handler, event)
                first = first or e
        if first is not None and (failure is None or not isinstance(first, Exception)):
            raise first
        if first is not None and failure is not None:
            failure.add_note(f"Then, while cleaning up: {first!r} ({'; '.join(getattr(first, '__notes__', ()))})")

    # What a callback may use

    def for_this_fit(self, **attributes: Any) -> None:
        """Set attributes of the learner, steps among them, until this fit ends: `for_this_fit(predict=my_predict)`."""
        for name, value in attributes.items():
            self._before_this_fit.setdefault(name, vars(self).get(name, _ABSENT))
            setattr(self, name, value)

    def _undo_this_fit(self) -> None:
        for name, value in self._before_this_fit.items():
            if value is _ABSENT:
                vars(self).pop(name, None)
            else:
                setattr(self, name, value)

    def gather(self, values: Any, samples: bool = False) -> Any:
        """The tensors in `values` from all processes of a distributed fit, one behind the other; here: as they are.

        Args:
            samples: they are of this batch's samples, one row each: those that a sampler repeated are left out.
        """
        return values

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

    xb = property(lambda self: self.batch[: self.n_inp])
    yb = property(lambda self: self.batch[self.n_inp :])

    # What a user may ask for

    def lr_find(
        self, gamma: float = 1.3, max_mult: float = 3, start_lr: float = 1e-5, max_epochs: int = 10, plot: bool | None = None
    ) -> float | None:  # fmt: skip
        """Try learning rates from `start_lr` upwards and suggest one; see `lsuvcb.training.lr_find.lr_find`."""
        return lr_find.lr_find(self, gamma, max_mult, start_lr, max_epochs, plot)

    def survey(self, layers: Selector | None = None) -> Survey:
        """`lsuvcb.survey` of the model on the batch that LSUVCallback would take, on its device; see there."""
        return survey_of(self, layers)

    def save(self, path: str | Path) -> None:
        """Write the model's weights to a file, all or nothing; `load` and `torch.load` read it."""
        state.save_model(self.model, path)

    def load(self, path: str | Path) -> None:
        """Read weights, and nothing else, that `save`, CheckpointCB or torch.save(model.state_dict()) wrote.

        An LSUVCallback leaves them alone from then on, unless it is told `force=True`.

        Raises:
            FileNotFoundError, CheckpointError: no such file, a damaged one, or weights of another model. None is changed.
        """
        state.load_weights(self.model, path)

    def plot_history(self) -> Axes:
        """Draw the loss and each metric of `history` by epoch, training and validation."""
        from ..plot import plot_history

        return plot_history(self.history)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, lr={self.lr}, cbs={self.cbs})"
