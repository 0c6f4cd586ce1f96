"""Which modules are meant: dotted paths without wrappers, and the selectors that every part of the library takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn

Selector = type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[nn.Module], bool] | Sequence[nn.Module | str]

# What DDP, FSDP, torch.compile and activation checkpointing put between a name and its module. `module` counts only
# under a parent of the types in `_is_parallel`: a net may have a child of that name.
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


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


def module_paths(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of `model` once, by its dotted path without wrappers, in the order of `named_modules()`.

    >>> list(module_paths(nn.Sequential(nn.Linear(2, 3), nn.ReLU())))
    ['', '0', '1']
    """
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        module = unwrap(module)
        if module in seen:
            return
        seen.add(module)
        yield path, module
        for name, child in module._modules.items():
            if child is not None:
                yield from walk(child, f"{path}.{name}" if path else name)

    return dict(walk(model, ""))


def select_modules(model: nn.Module, layers: Selector | None) -> dict[str, nn.Module]:
    """The modules of `model` that `layers` means, by dotted path, in the order of `named_modules()`.

    Args:
        model: where to look; the model itself has the path ''.
        layers: a module type, a tuple of types, a predicate on a module (as fastcore's risinstance gives),
            or a list of modules or dotted paths. None means every module.

    Returns:
        path -> module; empty if the type or the predicate matches nothing.

    Raises:
        TypeError: `layers` is of none of these kinds.
        ValueError: the list is empty, or has a path or a module that is not in the model.

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
    if isinstance(layers, type) or (isinstance(layers, tuple) and layers and all(isinstance(t, type) for t in layers)):
        return {path: module for path, module in paths.items() if isinstance(module, layers)}
    if isinstance(layers, nn.Module):
        raise TypeError(
            f"`layers` must be a type, a predicate or a list, got one module ({type(layers).__name__}); write `layers=[module]`."
        )
    if callable(layers):
        return {path: module for path, module in paths.items() if layers(module)}
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise TypeError(
            "`layers` must be a module type, a tuple of types, a predicate on a module, or a list of modules or dotted "
            f"names, got {layers!r} ({type(layers).__name__})."
        )
    if not layers:
        raise ValueError(
            "`layers` is an empty list: name at least one layer, or leave it out for every weight at work."
        )
    wanted: set[nn.Module] = set()
    for item in layers:
        found = paths.get(item) if isinstance(item, str) else unwrap(item) if isinstance(item, nn.Module) else None
        if found is None or found not in set(paths.values()):
            names = ", ".join(repr(p) for p in list(paths)[1:7])
            shown = repr(item) if isinstance(item, str) else type(item).__name__
            raise ValueError(
                f"`layers` has {shown}, which is no module of this {type(unwrap(model)).__name__}; it has {names}, ..."
            )
        wanted.add(found)
    return {path: module for path, module in paths.items() if module in wanted}
