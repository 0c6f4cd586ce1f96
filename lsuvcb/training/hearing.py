"""Who hears what: the half of a learner that keeps its callbacks and fires their events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .events import EVENTS, STEPS, Callback, Handler, name_callback


class Hearing:
    """Callbacks, the events that they hear, and what they set for the time of a fit.

    Args:
        cbs: of every fit.
    """

    def __init__(self, cbs: list[Callback]) -> None:
        self.cbs = cbs
        self._events: dict[str, list[Handler]] = {}  # in a fit: looked up once
        self._this_fit = ExitStack()

    def _handlers(self, event: str) -> list[Handler]:
        return [getattr(cb, event) for cb in sorted(self.cbs, key=lambda cb: cb.order) if hasattr(cb, event)]

    def _listen(self) -> None:
        self._events = {name: self._handlers(name) for name in (*EVENTS, *STEPS)}

    @contextmanager
    def hearing(self, cbs: Iterable[Callback]) -> Iterator[None]:
        """Inside, in a fit, its events and steps go to `cbs` instead of the learner's own callbacks."""
        held = self.cbs, self._events
        self.cbs = list(cbs)
        self._listen()
        try:
            yield
        finally:
            self.cbs, self._events = held

    def heard(self, event: str) -> list[Handler]:
        """The handlers of `event` or of a step, in the order in which they are called."""
        return self._events[event] if event in self._events else self._handlers(event)

    def callback(self, event: str) -> None:
        """Fire `event`: every callback that has a method of this name is called with the learner.

        An exception gains a note that names the callback and the event.
        """
        for handler in self.heard(event):
            try:
                handler(self)
            except Exception as e:
                name_callback(e, handler, event)
                raise

    def for_this_fit(self, **attributes: Any) -> None:
        """Set attributes of the learner, steps among them, until this fit ends: `for_this_fit(predict=my_predict)`."""
        for name, value in attributes.items():
            if name in vars(self):
                self._this_fit.callback(setattr, self, name, vars(self)[name])
            else:
                self._this_fit.callback(vars(self).pop, name, None)
            setattr(self, name, value)

    # The five steps: a callback teaches them, unless the class of the learner has its own. They are methods one by one:
    # with a `__getattr__` every attribute of a learner is slower to read, in each step.

    def predict(self) -> None:
        self.callback("predict")

    def get_loss(self) -> None:
        self.callback("get_loss")

    def backward(self) -> None:
        self.callback("backward")

    def step(self) -> None:
        self.callback("step")

    def zero_grad(self) -> None:
        self.callback("zero_grad")
