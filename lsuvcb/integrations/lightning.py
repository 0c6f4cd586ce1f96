"""LSUVCallback for Lightning: LSUV at the start of `trainer.fit`, and no other difference."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import repeat
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils import _pytree as pytree

from ..callback.loader_batch import drawn_here
from ..callback.logged import LoggedInitialiser
from ..callback.past import note_trained
from ..engine.errors import LSUVError
from ..engine.keeping.attributes import contents_kept
from ..engine.keeping.generators import rewound
from ..engine.keeping.undisturbed import devices_of
from ..engine.ranks import group_of_all


class LSUVCallback(LoggedInitialiser, Callback):
    """Initialises the module with LSUV on one training batch, once, and prints one line. Runs at on_train_start.

    See `lsuv_` for the arguments, all by keyword. Three more:

    Args:
        batch: use this batch, as the training loader would give it, instead of drawing one.
        force: initialise also a module that was initialised or trained before; not in a fit that resumes.
        log: send the figures of the report to the trainer's loggers as well, once, at the trainer's global step.

    Attributes:
        report: the LSUVReport of the last run; None before.

    Raises:
        TypeError, ValueError: where the callback is made, for an argument that `lsuv_` would refuse.
        LSUVError: at the start of a fit, for a module with manual optimization and no `forward=`.
        MisconfigurationException: at the start of a fit, for `log=True` in a Trainer without a logger.

    The batch is the first that the fit will train on (one like it, where a loader has workers or no length), drawn in this
    process and sent through the module's or the data module's batch hooks to its device. The forward is
    `training_step(batch, 0)` in train mode, under the trainer's precision, without gradients, with `self.log` and
    `self.log_dict` switched off. A step that takes a `dataloader_iter` is given one of that batch as it was drawn. `forward=`
    replaces the forward and is called as forward(module, batch), under the same precision.
    Moments are summed over all ranks of the trainer (tested on two processes with DDP and ModelParallelStrategy; FSDPStrategy,
    which Lightning refuses without a GPU, is untested).

    A trial comes after: where a tuner is among the callbacks (LearningRateFinder, BatchSizeFinder; `Tuner` adds one), the
    module is initialised at on_fit_start, before the tuner saves what it will put back.

    Side effects: the weights, see `lsuv_`. All else is as before: random generators, also those that the loader, its samplers
    and its data set hold; the attributes of the module and its submodules, with what lists, dicts, sets and tensors among
    them hold (outputs that a step collects, the state of torchmetrics). A fit that resumes (`ckpt_path=`), a second fit of
    the same module, and weights that look trained are left alone, and one line says so.

    Caveats: what `training_step` writes elsewhere (to a logger, to disk) is written, once for each of three passes
    (`verify=False`: one). A module from `load_from_checkpoint` without norm layers looks like a new one: leave the callback
    out. Processes that a strategy spawns (ddp_spawn, ddp_notebook) note on their own copies of the module that it is done.
    What cannot be rewound loses the batch to LSUV: a one-shot iterator, an IterableDataset that keeps its place; name a
    `batch=`.

    Example:
        Trainer(max_epochs=3, callbacks=[LSUVCallback()]).fit(module, loader)
    """

    _asked = False  # in this fit
    _callbacks: list[Callback] | None = None  # the trainer's own order

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        self._asked = False
        if stage == "fit" and self.logs and not trainer.loggers:
            raise MisconfigurationException(
                "LSUVCallback(log=True) needs a Trainer that has a logger, and this one has none. Give it one, as in "
                "Trainer(logger=CSVLogger('logs')), or leave out `log=True`."
            )
        if stage == "fit" and _has_tuner(trainer):
            ours = [cb for cb in trainer.callbacks if isinstance(cb, LSUVCallback)]
            if ours[0] is self:  # Lightning sorts its tuners to the front
                self._callbacks = trainer.callbacks
                trainer.callbacks = [*ours, *(cb for cb in trainer.callbacks if cb not in ours)]

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        if _has_tuner(trainer):
            trainer.fit_loop.setup_data()
            self._run_once(trainer, pl_module)
        if self._callbacks is not None:
            trainer.callbacks, self._callbacks = self._callbacks, None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run_once(trainer, pl_module)

    def _run_once(self, trainer: Trainer, module: LightningModule) -> None:
        if self._asked:
            return
        self._asked = True
        resumes = trainer.ckpt_path is not None
        due = self.is_due(module, resumes=resumes, quiet=not trainer.is_global_zero)
        if resumes:
            note_trained(module, "by a fit that was resumed")
        if due:
            self._initialise(trainer, module)
            if self.logs and self.report is not None:
                for logger in trainer.loggers:
                    logger.log_metrics(self.report.to_log(), step=trainer.global_step)

    def _initialise(self, trainer: Trainer, module: LightningModule) -> None:
        if not module.automatic_optimization and self.lsuv_args.get("forward") is None:
            raise LSUVError(
                f"{type(module).__name__} has manual optimization: its training_step would step the optimizers. Say how to "
                "run it instead: LSUVCallback(forward=lambda module, batch: module(batch[0])). No weight was changed."
            )
        with rewound(trainer.train_dataloader, devices_of(module)), contents_kept(module), _without_log(module):
            drawn = _first(trainer.train_dataloader) if self.batch is None else self.batch
            with trainer.precision_plugin.train_step_context():
                self.initialise(
                    module,
                    _prepared(trainer, module, drawn),
                    quiet=not trainer.is_global_zero,
                    forward=_training_step,
                    group=group_of_all(module, trainer.world_size),
                )


def _has_tuner(trainer: Any) -> bool:
    return any(isinstance(cb, (LearningRateFinder, BatchSizeFinder)) for cb in trainer.callbacks)


def _training_step(module: LightningModule, batch: Any) -> Any:
    if _takes_iterator(module):
        return module.training_step(repeat((batch, 0, 0)))
    takes_index = len(inspect.signature(module.training_step).parameters) > 1
    return module.training_step(batch, 0) if takes_index else module.training_step(batch)


def _takes_iterator(module: LightningModule) -> bool:
    """Does the step draw its batches itself? Lightning goes by the name of its argument, and then leaves the batch as it is."""
    return "dataloader_iter" in inspect.signature(module.training_step).parameters


def _first(loaders: Any) -> Any:
    """The first batch of each loader, in the structure of `loaders`: one, or a list or dict of them."""
    with ExitStack() as stack:
        with rewound(loaders):  # Lightning has its iterators by now, and what making them drew
            iterators = pytree.tree_map(lambda loader: stack.enter_context(drawn_here(loader)), loaders)
        return pytree.tree_map(next, iterators)


def _prepared(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """What the training loop does to a batch before `training_step`."""
    if _takes_iterator(module):
        return batch
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


@contextmanager
def _without_log(module: nn.Module) -> Iterator[None]:
    """`self.log` and `self.log_dict` do nothing, in this module and in those inside it."""
    quiet = [m for m in module.modules() if isinstance(m, LightningModule)]
    for m in quiet:
        vars(m).update(log=_nothing, log_dict=_nothing)
    try:
        yield
    finally:
        for m in quiet:
            del vars(m)["log"], vars(m)["log_dict"]


def _nothing(*args: Any, **kwargs: Any) -> None: ...
