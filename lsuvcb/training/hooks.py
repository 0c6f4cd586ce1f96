"""Forward hooks that are sure to go again: one, several, and those of a fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

from torch import nn

from ..engine.errors import LSUVWarning
from ..engine.select import Selector, kind_of, select_modules, unwrap
from .events import Callback
from .loop import Loop

HookFunc = Callable[["Hook", nn.Module, tuple[Any, ...], Any], Any]


def _nothing(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    """What a copy or a pickle of a hooked model has in place of the hook."""


def _no_hook() -> Callable[..., None]:
    return _nothing


class _Watch:
    """The hook as the module holds it. A model that is copied or saved in the middle of a fit leaves it behind."""

    def __init__(self, hook: Hook, f: HookFunc) -> None:
        self.hook, self.f = hook, f

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        self.hook.calls += 1
        return self.f(self.hook, module, inputs, output)

    def __reduce__(self) -> Any:
        return (_no_hook, ())


class Hook:
    """Calls `f(hook, module, inputs, output)` whenever module `m` runs, until `remove()` or the end of a `with` block.

    Args:
        m: the module to watch.
        f: may keep what it learns as attributes of the hook. If it returns a value, that replaces the module's output.
        name: dotted path of the module, for reports.

    Attributes:
        name, kind: which module it is, and its type.
        calls: how often the module ran.

    Example:
        >>> import torch
        >>> def keep_shape(hook, module, inputs, output): hook.shape = tuple(output.shape)
        >>> layer = nn.Linear(3, 2)
        >>> with Hook(layer, keep_shape) as hook:
        ...     _ = layer(torch.zeros(5, 3))
        >>> hook.shape
        (5, 2)
    """

    def __init__(self, m: nn.Module, f: HookFunc, name: str = "") -> None:
        self.name, self.kind, self.calls = name, kind_of(m), 0
        self.hook: Any = m.register_forward_hook(_Watch(self, f))

    def remove(self) -> None:
        """Take the hook off its module; what it has learnt stays. A second time does nothing."""
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    def __enter__(self) -> Hook:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"Hook({self.name!r} {self.kind}, {self.calls} calls)"


class Hooks(list[Hook]):
    """A list of hooks, one for each module, all removed by `remove()` or at the end of a `with` block.

    Args:
        ms: modules, or a mapping from their names to them, as `dict(model.named_modules())` is one.
        f: as for Hook.

    Side effects: deleting an item removes its hook.
    """

    def __init__(self, ms: Iterable[nn.Module] | Mapping[str, nn.Module], f: HookFunc) -> None:
        named = ms.items() if isinstance(ms, Mapping) else ((str(i), m) for i, m in enumerate(ms))
        super().__init__()
        try:
            for name, m in named:
                self.append(Hook(m, f, name))
        except BaseException:
            self.remove_all()
            raise

    def remove_all(self) -> None:
        """Take every hook off its module; the list and what the hooks have learnt stay."""
        for hook in self:
            hook.remove()

    def remove(self, hook: Hook | None = None) -> None:
        """Take one hook off its module and drop it from the list; without an argument, take every hook off (`remove_all`)."""
        if hook is None:
            self.remove_all()
        else:
            del self[self.index(hook)]

    def __delitem__(self, i: SupportsIndex | slice) -> None:
        for hook in self[i] if isinstance(i, slice) else [self[i]]:
            hook.remove()
        super().__delitem__(i)

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove_all()


class HooksCallback(Callback):
    """Watches modules during a fit; `hooks` holds what was learnt. Runs at before_fit, after_fit and cleanup_fit.

    Args:
        hookfunc: called with (hook, module, inputs, output), as for Hook.
        layers: which modules: a type, a tuple of types, a predicate, or a list of modules or dotted names. None: all.
        on_train: call it while training.
        on_valid: call it while validating.
        mod_filter, mods: the course's names for `layers`, as a predicate and as a list.

    Warns:
        LSUVWarning: once if `layers` matches nothing, once if a watched module never ran.

    Each fit starts with new hooks. The list, the iterator and `len` of the callback are those of its hooks.
    """

    order = 30

    def __init__(
        self,
        hookfunc: HookFunc,
        layers: Selector | None = None,
        on_train: bool = True,
        on_valid: bool = False,
        *,
        mod_filter: Callable[[nn.Module], bool] | None = None,
        mods: list[nn.Module] | None = None,
    ) -> None:
        given = [which for which in (layers, mod_filter, mods) if which is not None]
        if len(given) > 1:
            raise ValueError("`layers`, `mod_filter` and `mods` mean the same; give one of them.")
        if not callable(hookfunc):
            raise TypeError(f"`hookfunc` must be callable, got {hookfunc!r} ({type(hookfunc).__name__}).")
        if not (on_train or on_valid):
            raise ValueError(
                f"{type(self).__name__}(on_train=False, on_valid=False) would do nothing; set one of them."
            )
        self.hookfunc, self.layers = hookfunc, given[0] if given else None
        self.on_train, self.on_valid = on_train, on_valid
        self.hooks = Hooks([], hookfunc)
        self._warned: set[str] = set()

    def select(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules to be watched, by dotted path."""
        return select_modules(model, self.layers)

    def watches(self, learn: Loop) -> bool:
        """Is this a batch to look at?"""
        return self.on_train if learn.training else self.on_valid

    def before_fit(self, learn: Loop) -> None:
        self.hooks.remove_all()
        modules = self.select(learn.model)
        if not modules:
            kinds = ", ".join(dict.fromkeys(kind_of(m) for m in unwrap(learn.model).modules()))
            self._warn(
                "nothing",
                f"`layers` of {type(self).__name__} must match a module of the model, got none: nothing is recorded. "
                f"The model has {kinds}; choose among these, as in {type(self).__name__}(layers=nn.ReLU).",
            )

        def look(hook: Hook, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            return self.hookfunc(hook, module, inputs, output) if self.watches(learn) else None

        self.hooks = Hooks(modules, look)

    def after_fit(self, learn: Loop) -> None:
        idle = [hook for hook in self.hooks if not hook.calls]
        if idle and learn.n_epochs:
            names = ", ".join(f"{hook.name!r} ({hook.kind})" for hook in idle[:6]) + (", ..." if len(idle) > 6 else "")
            self._warn(
                "idle",
                f"{len(idle)} of the {len(self.hooks)} modules watched by {type(self).__name__} never ran in this fit: "
                f"{names}. The model does not call them as modules, or runs compiled; choose others with `layers=`.",
            )

    def cleanup_fit(self, learn: Loop) -> None:
        self.hooks.remove_all()

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, LSUVWarning, stacklevel=2)

    def __iter__(self) -> Iterator[Hook]:
        return iter(self.hooks)

    def __len__(self) -> int:
        return len(self.hooks)

    def __getitem__(self, i: int) -> Hook:
        return self.hooks[i]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(layers={self.layers!r}, {len(self.hooks)} hooks)"
