"""LSUVCallback: LSUV at the start of a fit, and no other difference."""

from __future__ import annotations

from ..callback.initialiser import Initialiser
from .callbacks import DeviceCB
from .checks import check_arguments
from .events import Callback
from .loop import Loop
from .training_batch import predict_with, training_batch


class LSUVCallback(Initialiser, Callback):
    """Initialises the model with LSUV on one training batch, once per model, and prints one line. Runs at before_fit.

    See `lsuv_` for the arguments, all by keyword. Two more:

    Args:
        batch: use this batch, as the training loader would give it (or a tensor of inputs), instead of drawing one.
        force: initialise again even if the model has been through an LSUVCallback before; not in a fit that resumes.

    Attributes:
        report: the LSUVReport of the last run; None before.

    Raises:
        TypeError, ValueError: where the callback is made, for an argument that `lsuv_` would refuse.

    The batch is the first that the fit will train on (that no callback cancels): taken in this process, with every
    callback's before_batch, the model in train mode and `learn.predict()` as its forward (`forward=` replaces it, and
    is given the whole batch). A fit that does not train, one that resumes from a checkpoint, and a model that is done
    already (a second fit, another Learner, weights read by `learn.load`) are left alone.

    Side effects: the weights, see `lsuv_`. All else is as before: torch's generators (on the devices too), numpy's,
    Python's, and those held by the loader, its samplers and its data set; so the fit sees the batches, augmentations
    and dropout masks that it would have seen without the callback. A loader's workers are neither started nor asked.

    Caveats: what cannot be rewound loses the batch to LSUV: a one-shot iterator, an IterableDataset that keeps its
    place; so does state of your own that a data set changes on reading. A data set that only works inside a worker
    (worker_init_fn) cannot be read here. Name a `batch=` in these cases.

    Example:
        >>> LSUVCallback(tol=0.01, orthonormal=False)
        LSUVCallback(tol=0.01, orthonormal=False)
        >>> LSUVCallback(tolerance=0.01)
        Traceback (most recent call last):
        TypeError: LSUVCallback has no argument 'tolerance'; did you mean 'tol'?
    """

    order = DeviceCB.order + 30
    in_rehearsal = "itself"

    def before_fit(self, learn: Loop) -> None:
        quiet = not learn.is_main
        if learn.do_train and self.is_due(learn.model, resumes=learn.resumed, quiet=quiet):
            check_arguments(learn)  # a callback may have replaced one
            with training_batch(learn, self.batch) as batch:
                self.initialise(learn.model, batch, quiet=quiet, forward=predict_with(learn))
