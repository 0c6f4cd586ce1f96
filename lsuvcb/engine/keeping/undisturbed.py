"""Run a model and leave no trace: RNG, buffers, modes, gradients, compiled and wrapped models."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..select import all_modules
from ..tensors import has_repeats, tensors_in


class RNGState:
    """The state of every random generator that a model or a loader draws from, to be restored as often as needed.

    Covers torch on the CPU and on `devices`, Python's `random`, and numpy's global generator if numpy is loaded.
    """

    def __init__(self, devices: Iterable[torch.device] = ()) -> None:
        self._devices = {d: torch.get_device_module(d) for d in devices if d.type not in ("cpu", "meta")}
        self._cpu = torch.get_rng_state()
        self._on_devices = {d: self._get(d) for d in self._devices}
        self._python = random.getstate()
        self._numpy = numpy.random.get_state() if (numpy := sys.modules.get("numpy")) else None

    def _get(self, device: torch.device) -> Tensor:
        module = self._devices[device]
        return module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)

    def as_dict(self) -> dict[str, Any]:
        """The states by name, each as its generator gives it; the devices' in the order of their names."""
        devices = [self._on_devices[d] for d in sorted(self._on_devices, key=str)]
        return {"torch": self._cpu, "devices": devices, "python": self._python, "numpy": self._numpy}

    @classmethod
    def from_dict(cls, states: dict[str, Any], devices: Iterable[torch.device] = ()) -> RNGState:
        """What `as_dict` gave, to be restored; a device that was not there then keeps the state that it has."""
        state = cls(devices)
        state._cpu, state._python = states["torch"], states["python"]
        state._numpy = states["numpy"] if "numpy" in sys.modules else None
        state._on_devices.update(zip(sorted(state._on_devices, key=str), states["devices"], strict=False))
        return state

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        for device, state in self._on_devices.items():
            module = self._devices[device]
            if device.type == "mps":
                module.set_rng_state(state)
            else:
                module.set_rng_state(state, device)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def devices_of(model: nn.Module, batch: Any = None) -> set[torch.device]:
    """Where the parameters and buffers of `model` and the tensors of `batch` live."""
    parts = [part for m in all_modules(model) for part in (m._parameters, m._buffers) if part]
    held = {t.device for part in parts for t in part.values() if t is not None}
    return held.union(t.device for t in tensors_in(batch))


_PLAIN = (bool, int, float, complex, str, bytes, tuple, torch.dtype, torch.device)
_INTERNAL = frozenset(vars(nn.Module()))  # what torch itself keeps in a module


class Snapshot:
    """What a forward may change in a model besides its outputs: modes, buffers, gradients, flags, RNG."""

    def __init__(self, model: nn.Module, batch: Any = None) -> None:
        self._modules = [(m, m.training, dict(m._buffers)) for m in all_modules(model)]
        written = [b for _, _, buffers in self._modules for b in buffers.values() if b is not None and not is_lazy(b)]
        # an embedding with a max_norm rescales its table in the forward
        written += [m.weight for m, _, _ in self._modules if vars(m).get("max_norm") and isinstance(m.weight, Tensor)]
        self._written = {t: t.detach().clone() for t in written}
        self._versions = {t: t._version for t in written if t.layout != torch.strided or t.is_nested}
        self._attributes = {m: vars(m).copy() for m, _, _ in self._modules}
        parameters = {id(p): p for m, _, _ in self._modules for p in m._parameters.values() if p is not None}
        self._rng = RNGState({t.device for t in (*parameters.values(), *written, *tensors_in(batch))})
        self._grads = [(p, p.grad, p.requires_grad) for p in parameters.values()]

    def renew(self, module: nn.Module) -> None:
        """Take the values that the buffers and attributes of `module` have now for the ones to keep."""
        for buffer in module.buffers():
            if buffer in self._written:
                self._keep(buffer)
        self._attributes.update((m, vars(m).copy()) for m in module.modules())

    def accept(self) -> None:
        """Take the values that all buffers have now for the ones to keep: one may share its memory with a written weight."""
        for buffer in self._written:
            if not self._is_as_kept(buffer):
                self._keep(buffer)

    def _keep(self, buffer: Tensor) -> None:
        self._written[buffer] = buffer.detach().clone()
        if buffer in self._versions:
            self._versions[buffer] = buffer._version

    def _is_as_kept(self, buffer: Tensor) -> bool:
        """Does the buffer hold the values to keep? False where that cannot be told without waiting for a device."""
        if buffer in self._versions:
            return buffer._version == self._versions[buffer]
        return _same(buffer, self._written[buffer])

    def hide_gradients(self) -> None:
        """Take the gradients off the parameters, where a forward's backward() would add to them, until `restore`."""
        for p, grad, _ in self._grads:
            if grad is not None:
                p.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, in place: the same buffer objects hold the same values as before."""
        other_buffers = False
        for module, training, buffers in self._modules:
            if module.training is not training:
                module.training = training
            if not buffers and not module._buffers:
                continue
            new = module._buffers.keys() - buffers.keys()
            if new or any(module._buffers.get(name) is not buffer for name, buffer in buffers.items()):
                module._buffers.update(buffers)
                for name in new:
                    del module._buffers[name]
                other_buffers = True
        if other_buffers:
            for module, attributes in self._attributes.items():
                _put_back(module, attributes)
        for buffer, value in self._written.items():
            if not self._is_as_kept(buffer):  # copy_ bumps the version counter
                if buffer.shape != value.shape:  # an observer of quantization gives its buffers their sizes at last
                    buffer.resize_(value.shape)
                buffer.copy_(value)
        for p, grad, requires_grad in self._grads:
            if p.grad is not grad:
                p.grad = grad
            if p.requires_grad != requires_grad:
                p.requires_grad_(requires_grad)
        # autocast keeps casts of the weights; those made without gradients would cut the graph of a later forward
        torch.clear_autocast_cache()
        self._rng.restore()


def _same(a: Tensor, b: Tensor) -> bool:
    if has_repeats(a):
        return True  # an expanded buffer: torch lets nothing write into it
    return a.device.type == "cpu" and a.shape == b.shape and torch.equal(a, b)


def _put_back(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Plain values (numbers, texts, tuples, None) as they were, and nothing new: they may tell of the buffers put back.

    What torch itself keeps in a module is put back elsewhere. A rotary embedding keeps the length that its cache is for, a
    parent that its child is ready. Where all buffers stay, no attribute is looked at.
    """
    held = vars(module)
    for name in attributes.keys() - _INTERNAL:
        value = attributes[name]
        if value is not held.get(name, held) and (value is None or isinstance(value, _PLAIN)):
            held[name] = value
    for name in held.keys() - attributes.keys() - _INTERNAL:
        del held[name]


@contextlib.contextmanager
def undisturbed(model: nn.Module, batch: Any = None) -> Iterator[Snapshot]:
    """Whatever runs inside leaves `model` and the random generators as they were, after success and after any failure.

    Args:
        model: its submodules' training flags, buffers, `.grad` and requires_grad are kept; its parameters' values are
            not looked at.
        batch: where its tensors live, that device's generator is kept too.

    Yields:
        the Snapshot; `restore()` may be called in between, so that each of several passes starts from the same state.

    Compiled parts (torch.compile) run eagerly inside: a compiled graph would not see modes and hooks added later.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
        >>> with undisturbed(net):
        ...     _ = net(torch.randn(8, 3))
        >>> int(net[0].num_batches_tracked)
        0
    """
    snapshot = Snapshot(model, batch)
    # torch.compile imports torch._dynamo; where nothing did, nothing is compiled and the (slow) import is saved
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    try:
        with eager:
            yield snapshot
    finally:
        snapshot.restore()
