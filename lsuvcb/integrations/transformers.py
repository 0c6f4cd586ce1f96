"""LSUVCallback for the Hugging Face Trainer: LSUV at the start of `trainer.train()`, and no other difference."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..callback.loader_batch import drawn_here
from ..callback.logged import LoggedInitialiser
from ..callback.past import note_trained
from ..engine.keeping.attributes import in_train_mode
from ..engine.keeping.generators import rewound
from ..engine.keeping.undisturbed import devices_of
from ..engine.ranks import group_of_all


class LSUVCallback(LoggedInitialiser, TrainerCallback):
    """Initialises the model with LSUV on one training batch, once, and prints one line. Runs at on_train_begin.

    For models that begin from a config; one that `from_pretrained` loaded is left alone. Frozen weights (the base of PEFT's
    adapters) and weights that start at zero (LoRA's B) are left alone, too, and the report names them.

    See `lsuv_` for the arguments, all by keyword. Three more:

    Args:
        batch: use this batch, as the training loader would give it, instead of drawing one.
        force: initialise also a model that was initialised or trained before; not in a run that resumes.
        log: give the figures of the report to `Trainer.log`, when the first epoch begins: into `state.log_history`, and to on_log
            of the other callbacks (TensorBoard, wandb).

    Attributes:
        report: the LSUVReport of the last run; None before.

    Raises:
        TypeError, ValueError: where the callback is made, for an argument that `lsuv_` would refuse.
        LSUVError: at the start of a run under DeepSpeed's ZeRO, whose first step would undo LSUV; call `lsuv_` on the model
            before the Trainer gets it.

    The batch is the first that the run will train on (one like it, where the loader has no seedable sampler), drawn in this
    process and moved to the model's device. The forward is `model(**batch)` in train mode, without gradients, under the
    precision that the Trainer gave the model; `forward=` replaces it and is called as forward(model, batch). Moments are
    summed over all ranks of the Trainer.

    Side effects: the weights, see `lsuv_`. All else is as before, random generators included, also those that the loader,
    its samplers and its data set hold. A run that resumes from a checkpoint, a second run of the same model, and weights that
    look trained are left alone, and one line says so. In a search (`hyperparameter_search`, `model_init=`) each trial has a model
    of its own, which is initialised; a smaller batch tried by `auto_find_batch_size` finds the model as the first try made it.

    Caveats: weights of a model without norm layers that `load_state_dict` read look like new ones. The Trainer's own
    compute_loss is not called: a model that needs it wants a `forward=`. What cannot be rewound loses the batch to LSUV: an
    IterableDataset that keeps its place; name a `batch=`.

    Example:
        Trainer(model=AutoModelForCausalLM.from_config(config), train_dataset=data, callbacks=[LSUVCallback()]).train()
    """

    _unlogged: dict[str, float] | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        train_dataloader: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        resumes, quiet = state.global_step > 0, not state.is_world_process_zero
        due = self.is_due(model, resumes=resumes, optimizer=optimizer, quiet=quiet)
        if resumes:
            note_trained(model, "by a run that was resumed")
        if not due:
            return
        loader = getattr(
            train_dataloader, "base_dataloader", train_dataloader
        )  # Accelerate's own keeps count of its batches
        with rewound(loader, devices_of(model)), in_train_mode(model):
            drawn = _first(loader) if self.batch is None else self.batch
            batch = pytree.tree_map_only(Tensor, lambda t: t.to(args.device), _plain(drawn))
            group = group_of_all(model, args.world_size)
            self.initialise(model, batch, quiet=quiet, group=group)
        if self.logs and self.report is not None:
            self._unlogged = self.report.to_log()  # the callbacks behind this one have not begun yet

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._unlogged is not None:
            _trainer().log(self._unlogged)
            self._unlogged = None


def _trainer() -> Trainer:
    """The Trainer whose event this is, from the stack: it hands its callbacks all but itself, and only its `log` reaches them."""
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), Trainer):
        frame = frame.f_back
    assert frame is not None
    return frame.f_locals["self"]


def _first(loader: Any) -> Any:
    with drawn_here(loader) as batches:
        return next(batches)


def _plain(batch: Any) -> Any:
    """A tokenizer's BatchEncoding as a dict."""
    return dict(batch) if hasattr(batch, "keys") else batch
