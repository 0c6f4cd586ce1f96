"""What a fit needs before it begins: every step is taught once, every loader can give a batch."""

from __future__ import annotations

from typing import Any

from .batches import empty_loader, length
from .events import STEPS, owner_name


def check_steps(learn: Any) -> None:
    """ValueError where nothing teaches a step that this fit takes, or two callbacks teach the same."""
    for step in STEPS if learn.do_train else STEPS[:2] if learn.do_valid else ():
        teachers = [owner_name(handler) for handler in learn.heard(step)]
        if hasattr(type(learn), step):
            teachers.insert(0, type(learn).__name__)
        if not teachers and step not in vars(learn):
            raise ValueError(
                f"Nothing teaches this {type(learn).__name__} to `{step}`: add TrainCB() to its callbacks, or use "
                f"TrainLearner. Its callbacks: {', '.join(type(cb).__name__ for cb in learn.cbs) or 'none'}."
            )
        if len(teachers) > 1:
            raise ValueError(f"`{step}` must be taught by one, got {' and '.join(teachers)}; keep one of them.")


def check_loaders(learn: Any) -> None:
    """ValueError where a loader that this fit goes over is missing or empty."""
    for name in [name for name, used in (("train", learn.do_train), ("valid", learn.do_valid)) if used]:
        loader = getattr(learn.dls, name, None)
        if loader is None:
            raise ValueError(f"fit({name}=True) needs `dls.{name}`, got None; pass {name}=False to leave it out.")
        if length(loader) == 0:
            raise ValueError(empty_loader(learn.dls, name))
