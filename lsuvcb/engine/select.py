"""Which modules and weights are meant: dotted paths without wrappers, and the selectors that every part of the library takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

Selector = type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[nn.Module], bool] | Sequence[nn.Module | str]

# What DDP, FSDP, torch.compile, activation checkpointing and Lightning's Fabric put between a name and its module. `module`
# counts only under a parent of the types in `_is_parallel`: a net may have a child of that name.
_MOST_NAMES = 10_000  # more than one for a module: blocks shared within shared blocks could have any number
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


def _is_parallel(module: nn.Module) -> bool:
    return isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))


def _inner(module: nn.Module) -> nn.Module | None:
    children = module._modules
    if not children:
        return None
    if _is_parallel(module):
        return children["module"]
    return next((children[name] for name in _WRAPPED if name in children), None)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own model inside DDP, torch.compile and their like; the model itself where nothing wraps it."""
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def all_modules(model: nn.Module) -> list[nn.Module]:
    """`model.modules()` in another order, wrappers included: some ten times faster on a net of hundreds of layers."""
    found = [model]
    seen = {model}
    for module in found:
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


def module_names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module of `model`, in the order of `named_modules()`, with all its dotted paths, without wrappers.

    >>> relu = nn.ReLU()
    >>> list(module_names(nn.Sequential(relu, nn.Sequential(relu))).values())
    [[''], ['0', '1.0'], ['1']]
    """
    found: dict[nn.Module, list[str]] = {}
    left = [_MOST_NAMES]

    def walk(module: nn.Module, path: str, above: tuple[nn.Module, ...]) -> None:
        module = unwrap(module)
        if module in above or (module in found and not left[0]):
            return
        left[0] -= module in found
        found.setdefault(module, []).append(path)
        for name, child in module._modules.items():
            if child is not None:
                walk(child, f"{path}.{name}" if path else name, (*above, module))

    walk(model, "", ())
    return found


def module_paths(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of `model` once, by the first of its dotted paths without wrappers, in the order of `named_modules()`.

    >>> list(module_paths(nn.Sequential(nn.Linear(2, 3), nn.ReLU())))
    ['', '0', '1']
    """
    return {paths[0]: module for module, paths in module_names(model).items()}


def kind_of(module: nn.Module) -> str:
    """The type of a module, as its user wrote it: not the class that parametrizing or torch's attention made of it.

    >>> kind_of(nn.MultiheadAttention(4, 2).out_proj)
    'Linear'
    """
    shown = type(module).__mro__["parametrizations" in module._modules]
    return nn.Linear.__name__ if shown is nn.modules.linear.NonDynamicallyQuantizableLinear else shown.__name__


class Selection:
    """What a selector means in one model.

    Args:
        model: where to look; the model itself has the path ''.
        layers: a module type, a tuple of types, a predicate on a module (as fastcore's risinstance gives), or a list of
            modules, dotted paths, names of weights, and patterns of these such as "*.out_proj".
        weights: the names of weights that may be named, beside the modules' paths.
        argument: which argument it is, for messages.

    Attributes:
        modules: those that are meant.

    Raises:
        TypeError: `layers` is of none of these kinds.
        ValueError: the list is empty, or has a path, a pattern or a module that means nothing in the model.
    """

    def __init__(
        self, model: nn.Module, layers: Selector, weights: Iterable[str] = (), argument: str = "layers"
    ) -> None:
        self._model, self._argument = model, argument
        self._paths = {path: module for module, paths in module_names(model).items() for path in paths}
        self._weights = set(weights)
        self._named: set[str] = set()
        self.modules: set[nn.Module] = set()
        if isinstance(layers, type) or (isinstance(layers, tuple) and layers and _all_types(layers)):
            self.modules = {module for module in self._paths.values() if isinstance(module, layers)}
        elif isinstance(layers, nn.Module):
            raise TypeError(
                f"`{argument}` must be a type, a predicate or a list, got one module ({type(layers).__name__}); write "
                f"`{argument}=[module]`."
            )
        elif callable(layers):
            self.modules = {module for module in dict.fromkeys(self._paths.values()) if layers(module)}
        elif isinstance(layers, str) or not isinstance(layers, Sequence):
            raise TypeError(
                f"`{argument}` must be a module type, a tuple of types, a predicate on a module, or a list of modules or "
                f"dotted names, got {layers!r} ({type(layers).__name__})."
            )
        elif not layers:
            raise ValueError(
                f"`{argument}` is an empty list: name at least one layer, or leave it out for every weight at work."
            )
        else:
            for item in layers:
                self._add(item)

    def _add(self, item: Any) -> None:
        if isinstance(item, str) and any(mark in item for mark in "*?["):
            names = [name for name in self._weights if fnmatchcase(name, item)]
            paths = [path for path in self._paths if fnmatchcase(path, item)]
            if not names and not paths:
                raise ValueError(self._no_such(repr(item), "means no module"))
            self._named.update(names)
            self.modules.update(self._paths[path] for path in paths)
        elif isinstance(item, str) and item in self._weights:
            self._named.add(item)
        else:
            found = self._paths.get(item) if isinstance(item, str) else None
            found = unwrap(item) if isinstance(item, nn.Module) else found
            if found is None or found not in set(self._paths.values()):
                shown = repr(item) if isinstance(item, str) else type(item).__name__
                raise ValueError(self._no_such(shown, "is no module"))
            self.modules.add(found)

    def _no_such(self, item: str, what: str) -> str:
        names = ", ".join(repr(p) for p in list(self._paths)[1:7])
        return f"`{self._argument}` has {item}, which {what} of this {type(unwrap(self._model)).__name__}; it has {names}, ..."

    def means(self, names: Iterable[str], owners: Iterable[nn.Module]) -> bool:
        """Is the weight of these names, held by these modules, one of those that are meant?"""
        return not self._named.isdisjoint(names) or not self.modules.isdisjoint(owners)


def _all_types(items: Sequence[Any]) -> bool:
    return all(isinstance(item, type) for item in items)


def select_modules(model: nn.Module, layers: Selector | None) -> dict[str, nn.Module]:
    """The modules of `model` that `layers` means, by dotted path, in the order of `named_modules()`; see Selection.

    Args:
        layers: None means every module.

    Returns:
        path -> module; empty if a type or a predicate matches nothing.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> select_modules(net, nn.ReLU)
        {'1': ReLU()}
        >>> list(select_modules(net, ["0"]))
        ['0']
    """
    paths = module_paths(model)
    if layers is None:
        return paths
    meant = Selection(model, layers).modules
    return {path: module for path, module in paths.items() if module in meant}
