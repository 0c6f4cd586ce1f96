"""What can go wrong with a model or a batch (errors), and what was finished but not as asked (warnings)."""


class LSUVError(RuntimeError):
    """A fact about the model or the batch that keeps LSUV from doing its work. No weight was changed."""


class NoLayersError(LSUVError):
    """No weight at work was found, or `layers` selected none of them."""


class LSUVWarning(UserWarning):
    """The parent of every warning of this library: the work was finished, but something wants a look."""


class NotConvergedWarning(LSUVWarning):
    """One or more layers could not be brought to their target; each keeps its best try."""


class InputScaleWarning(LSUVWarning):
    """The batch is far from unit variance (Mishkin's LSUV notes: scale the inputs first)."""


class TrainedModelWarning(LSUVWarning):
    """The model looks trained already, and the orthonormal step replaces its weights."""
