"""Every random generator that a fit draws from, global or held by a loader: found, rewound, kept in a checkpoint."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .undisturbed import RNGState


def held_by(root: Any, depth: int = 12, most: int = 20_000) -> list[Any]:
    """The generators that a loader holds, in itself, its samplers, its data set, their transforms; always in one order.

    Args:
        depth: how far to look: a subset of a data set of a composed transform takes seven steps.
        most: how many things to look at, where a data set holds a world of its own.
    """
    found: list[Any] = []
    seen: set[int] = set()

    def walk(thing: Any, depth: int) -> None:
        if id(thing) in seen or depth < 0 or len(seen) >= most:
            return
        seen.add(id(thing))
        if isinstance(thing, (torch.Generator, random.Random)) or _is_numpy_generator(thing):
            found.append(thing)
        elif isinstance(thing, (list, tuple)) and len(thing) <= 64:
            for item in thing:
                walk(item, depth - 1)
        elif isinstance(thing, dict) and len(thing) <= 64:
            for item in thing.values():
                walk(item, depth - 1)
        elif not isinstance(thing, (torch.Tensor, type)) and hasattr(thing, "__dict__"):
            walk(vars(thing), depth)

    walk(root, depth)
    return found


def _is_numpy_generator(thing: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(thing, (numpy.random.Generator, numpy.random.RandomState))


def get_state(generator: Any) -> Any:
    """The state of one generator, in its own form."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "bit_generator"):
        return generator.bit_generator.state
    return generator.get_state()


def set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


@contextmanager
def rewound(loader: Any, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Every random generator, global or held by `loader`, is afterwards as it was before, whatever happens inside."""
    rng, states = RNGState(devices), [(g, get_state(g)) for g in held_by(loader)]
    try:
        yield
    finally:
        for generator, state in states:
            set_state(generator, state)
        rng.restore()


def save_states(loaders: Iterable[Any], devices: Iterable[torch.device]) -> dict[str, Any]:
    """The states of all random generators, global and held by the loaders, as values that are safe to load from a file.

    These are what `torch.load(weights_only=True)` takes: tensors, numbers, strings, lists.
    """
    rng = RNGState(devices)
    return {"global": plain(rng.as_dict()), "held": [plain(get_state(g)) for g in held_by(list(loaders))]}


def load_states(saved: dict[str, Any], loaders: Iterable[Any], devices: Iterable[torch.device]) -> None:
    """Put back what `save_states` gave.

    Raises:
        ValueError: the loaders hold another number of generators than those that were saved.
    """
    generators = held_by(list(loaders))
    if len(generators) != len(saved["held"]):
        raise ValueError(
            f"the loaders must hold the {len(saved['held'])} random generators that were saved, got {len(generators)}; "
            "make them as in the fit that wrote the checkpoint."
        )
    for generator, state in zip(generators, saved["held"], strict=True):
        set_state(generator, _native(state))
    RNGState.from_dict(_native(saved["global"]), devices).restore()


def plain(value: Any) -> Any:
    """Numpy's arrays as tensors, marked so that `_native` finds them; tuples stay tuples."""
    if type(value).__module__ == "numpy" and hasattr(value, "dtype"):
        return {"numpy": str(value.dtype), "values": torch.from_numpy(value.astype("int64"))}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return value


def _native(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"numpy", "values"}:
            return value["values"].numpy().astype(value["numpy"])
        return {key: _native(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_native, value))
    return value
