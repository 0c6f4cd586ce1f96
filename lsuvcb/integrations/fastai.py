"""LSUVCallback for fastai: LSUV at the start of a fit, and no other difference."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.distributed import DistributedTrainer, rank_distrib
from fastai.learner import CastToTensor, SkipToEpoch
from torch import nn

from ..callback.initialiser import Initialiser
from ..callback.past import note_trained
from ..engine.keeping.attributes import attributes_kept, contents_kept, in_train_mode
from ..engine.keeping.generators import rewound
from ..engine.keeping.undisturbed import devices_of


class LSUVCallback(Initialiser, Callback):
    """Initialises the model with LSUV on one training batch, once per model, and prints one line. Runs at before_fit.

    See `lsuv_` for the arguments, all by keyword. Two more:

    Args:
        batch: use this batch, as `dls.train` would give it, instead of drawing one.
        force: initialise also a model that was initialised or trained before; not where `start_epoch` skips.

    Attributes:
        report: the LSUVReport of the last run; None before.

    Raises:
        TypeError, ValueError: where the callback is made, for an argument that `lsuv_` would refuse.

    The batch is the first that the fit will train on, drawn in this process and with the loader's batch transforms. The
    forward is `model(*xb)` in train mode, without gradients, under MixedPrecision's autocast if the Learner has it;
    `forward=` replaces it and is called as forward(model, batch) with the tuple `xb`. With DistributedTrainer, moments are
    summed over all ranks. `lr_find` counts as a fit: it starts from the initialised model and gives it back.

    Side effects: the weights, see `lsuv_`. All else is as before: random generators, also those that the loader and its
    data set hold; the loader; the attributes of the model, with what lists, dicts, sets and tensors among them hold (the
    hidden state of a language model). A second fit, another Learner around the same model, and weights that look trained
    (`learn.load`, a pretrained body) are left alone, and one line says so. Until the first fit a hook on the model notes
    that weights were loaded. `learn.validate`, `get_preds` and `summary`, which begin as a fit does, run nothing.

    Caveats: before_batch of other callbacks (MixUp) is not called for this batch. Weights of a net without norm layers that were
    loaded before the Learner was made look like new ones: leave the callback out. What cannot be rewound loses the batch to
    LSUV; name a `batch=`.

    Example:
        Learner(dls, model, cbs=[LSUVCallback()]).fit_one_cycle(3)
    """

    order = max(MixedPrecision.order, DistributedTrainer.order) + 1
    run_valid = False
    _only_train_loop = True  # fastai's word for what `learn.summary` takes off
    _watch: Any = None

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

    def _initialise(self, quiet: bool) -> None:
        learn, model = self.learn, self.learn.model
        loader = learn.dls.train
        with (
            rewound(loader, devices_of(model)),
            attributes_kept(learn, loader),
            contents_kept(model),
            in_train_mode(model),
        ):
            learn._split(learn._set_device(loader.one_batch() if self.batch is None else self.batch))
            for cast in [cb for cb in learn.cbs if isinstance(cb, CastToTensor)]:
                cast.before_batch()
            with _autocast(learn):
                self.initialise(model, learn.xb, quiet=quiet)


def _note_loaded(model: nn.Module, incompatible_keys: Any) -> None:
    note_trained(model, "its weights were loaded")


def _autocast(learn: Any) -> Any:
    return next((cb.autocast for cb in learn.cbs if isinstance(cb, MixedPrecision)), nullcontext())
