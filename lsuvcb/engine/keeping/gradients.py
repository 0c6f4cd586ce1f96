"""A backward pass of ours is none of the optimizer's, and no other process takes part in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from ..select import all_modules


@contextmanager
def gradients_kept(model: nn.Module) -> Iterator[None]:
    """Inside, a backward pass calls no hook that a parameter has behind its gradient (an optimizer's step, say), and DDP
    neither waits for gradients nor averages them; afterwards both are as before. `.grad` is kept by `undisturbed`.
    """
    with ExitStack() as stack:
        for module in all_modules(model):
            if isinstance(module, nn.parallel.DistributedDataParallel):
                stack.enter_context(module.no_sync())
        held = [p._post_accumulate_grad_hooks for p in model.parameters() if p._post_accumulate_grad_hooks]
        saved = [dict(hooks) for hooks in held]
        try:
            for hooks in held:
                hooks.clear()
            yield
        finally:
            for hooks, own in zip(held, saved, strict=True):
                hooks.update(own)
