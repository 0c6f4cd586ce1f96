"""LSUVCallback for fastai: LSUV at the start of a fit, and no other difference."""

from __future__ import annotations

import copy
from contextlib import nullcontext, suppress
from typing import Any

from fastai.callback.core import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelTrainException,
    TrainEvalCallback,
)
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import HookCallback
from fastai.callback.training import BnFreeze
from fastai.data.load import DataLoader
from fastai.distributed import DistributedTrainer, rank_distrib
from fastai.learner import SkipToEpoch
from torch import nn

from ..callback.loader_batch import drawn_here
from ..callback.logged import LoggedInitialiser
from ..callback.past import note_trained
from ..engine.keeping.attributes import attributes_kept, contents_kept, in_train_mode
from ..engine.keeping.generators import rewound
from ..engine.keeping.undisturbed import devices_of
from ..engine.select import all_modules


class LSUVCallback(LoggedInitialiser, Callback):
    """Initialises the model with LSUV on one training batch, once per model, and prints one line. Runs at before_fit.

    See `lsuv_` for the arguments, all by keyword. Three more:

    Args:
        batch: use this batch, as `dls.train` would give it, instead of drawing one.
        force: initialise also a model that was initialised or trained before; not where `start_epoch` skips.
        log: keep the figures of the report as `learn.recorder.lsuv_figures`, a dict, and write them into the file of
            TensorBoardCallback, in the first fit that has one.

    Attributes:
        report: the LSUVReport of the last run; None before.

    Raises:
        TypeError, ValueError: where the callback is made, for an argument that `lsuv_` would refuse.

    The batch is the first that the fit will train on, drawn in this process and with the loader's batch transforms; copies of the
    callbacks that come before this one in `order` (MixUp and CutMix; a callback of your own, whose order is 0) prepare it by
    their before_batch. The forward is `model(*xb)` in train mode, without gradients, under MixedPrecision's autocast if the
    Learner has it; `forward=` replaces it and is called as forward(model, batch) with the tuple `xb`. With DistributedTrainer,
    moments are summed over all ranks. `lr_find` counts as a fit: it starts from the initialised model and gives it back.

    Side effects: the weights, see `lsuv_`. All else is as before: random generators, also those that the loader and its
    data set hold; the loader; the attributes of the model, with what lists, dicts, sets and tensors among them hold (the
    hidden state of a language model). A second fit, another Learner around the same model, and weights that look trained
    (`learn.load`, a pretrained body) are left alone, and one line says so; so are layers that `freeze` or `fine_tune` has
    frozen, which the report names. Until the first fit a hook on the model notes that weights were loaded. `learn.validate`,
    `get_preds` and `summary`, which begin as a fit does, run nothing.

    Caveats: weights of a net without norm layers that were loaded before the callback came to the Learner (before the Learner was
    made, or before `fit(cbs=...)`) look like new ones: leave the callback out. What cannot be rewound loses the batch to LSUV;
    name a `batch=`.

    Example:
        Learner(dls, model, cbs=[LSUVCallback()]).fit_one_cycle(3)
    """

    order = max(MixedPrecision.order, DistributedTrainer.order) + 1
    run_valid = False
    _only_train_loop = True  # fastai's word for what `learn.summary` takes off
    _watch: Any = None
    _unwritten: dict[str, float] | None = None

    def after_create(self) -> None:
        self._watch = self.learn.model.register_load_state_dict_post_hook(_note_loaded)

    def before_fit(self) -> None:
        learn, model, quiet = self.learn, self.learn.model, rank_distrib() > 0
        if learn.lock.locked() or not learn.n_epoch:  # a validation, a prediction; a fit of no epochs
            return
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        resumes = any(isinstance(cb, SkipToEpoch) and cb._skip_to > 0 for cb in learn.cbs)
        due = self.is_due(model, resumes=resumes, optimizer=learn.opt, quiet=quiet)
        if resumes:
            note_trained(model, "by a fit that was resumed")
        if due:
            self._initialise(quiet)
            if self.logs and self.report is not None:
                self._unwritten = learn.recorder.lsuv_figures = self.report.to_log()

    def before_epoch(self) -> None:
        board = getattr(self.learn, "tensor_board", None)  # its file is open only now
        if self._unwritten is not None and board is not None and board.run:
            for name, value in self._unwritten.items():
                board.writer.add_scalar(name, value, 0)
            self._unwritten = None

    def _initialise(self, quiet: bool) -> None:
        learn, model = self.learn, self.learn.model
        loader = learn.dls.train
        cbs = _stand_ins(learn, [cb for cb in learn.cbs.sorted("order") if _prepares(cb) and cb.order < self.order])
        with (
            rewound(loader, devices_of(model)),
            attributes_kept(learn, *_loaders(loader), *cbs),
            contents_kept(model),
            in_train_mode(model),
        ):
            learn.training, learn.dl, learn.iter, learn.n_iter = True, loader, 0, len(loader)
            _fire(cbs, "before_train")
            learn._split(learn._set_device(_first(loader) if self.batch is None else self.batch))
            _fire(cbs, "before_batch")
            with _autocast(learn):
                self.initialise(model, learn.xb, quiet=quiet)


def _prepares(cb: Callback) -> bool:
    """Does it make of a batch, or of the modes, what the model gets? Hooks are for the batches that are trained on."""
    if isinstance(cb, (TrainEvalCallback, BnFreeze)):
        return True
    return hasattr(cb, "before_batch") and not isinstance(cb, (HookCallback, MixedPrecision))


def _stand_ins(learn: Any, cbs: list[Callback]) -> list[Callback]:
    """Copies that share the learner, the model, the data and the loss; a callback that cannot be copied takes part itself."""
    datasets = [getattr(dl, "dataset", None) for dl in learn.dls.loaders]
    shared = [learn, learn.opt, learn.loss_func, learn.dls, *learn.dls.loaders, *datasets]
    for module in all_modules(learn.model):
        shared += [module, *module._parameters.values(), *module._buffers.values()]
    memo = {id(thing): thing for thing in shared}
    return [_copied(cb, memo) for cb in cbs]


def _copied(cb: Callback, memo: dict[int, Any]) -> Callback:
    try:
        return copy.deepcopy(cb, memo)
    except (TypeError, RuntimeError, NotImplementedError, copy.Error):
        return cb


def _fire(cbs: list[Callback], event: str) -> None:
    """Fire an event as fastai does; where a callback cancels what it begins, the batch stays as it is then."""
    with suppress(CancelEpochException, CancelTrainException, CancelBatchException):
        for cb in cbs:
            cb(event)


def _first(loader: Any) -> Any:
    """The first batch of a loader of fastai's, DistributedTrainer's too, or of torch's."""
    alone = loader.fake_l.no_multiproc() if isinstance(loader, DataLoader) else nullcontext()
    with alone, drawn_here(loader) as batches:
        for batch in batches:
            return batch
    raise ValueError(
        "the training loader must have a batch to initialise on, got none; name one: LSUVCallback(batch=...)."
    )


def _loaders(loader: Any) -> list[Any]:
    """The loader, and the one that DistributedTrainer has wrapped: each keeps the generator of its order as an attribute."""
    return [loader, *(held for name, held in vars(loader).items() if name == "dl")]


def _note_loaded(model: nn.Module, incompatible_keys: Any) -> None:
    note_trained(model, "its weights were loaded")


def _autocast(learn: Any) -> Any:
    return next((cb.autocast for cb in learn.cbs if isinstance(cb, MixedPrecision)), nullcontext())
