"""What the loop costs over a bare PyTorch loop, beside fastai's and Lightning's own loops.

    pip install -e '.[bench]' && LSUVCB_DATA=... python tests/benchmarks/loop.py

One epoch of training, the course's convolutional net on Fashion-MNIST, the same weights, data, order and optimizer on both
sides. Each figure is a ratio: the time of that loop over the time of the bare one, run in turn, median of the pairs.
`--fast` leaves the peers out.
"""

from __future__ import annotations

import argparse
import copy
import gc
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lsuvcb import ActivationStats, DataLoaders, DeviceCB, MetricsCB, ProgressCB, TrainLearner
from lsuvcb.data import TensorLoader, fashion_mnist
from lsuvcb.nets import get_model
from lsuvcb.training.metrics import MulticlassAccuracy

LR, MOMENTUM = 0.01, 0.9
Run = Callable[[nn.Module, TensorLoader], Any]


def bare(model: nn.Module, loader: TensorLoader) -> None:
    opt = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    model.train()
    for xb, yb in loader:
        F.cross_entropy(model(xb), yb).backward()
        opt.step()
        opt.zero_grad()


def bare_with_hooks(model: nn.Module, loader: TensorLoader) -> None:
    """As the course takes its statistics: every activation to the CPU, and a full histogram."""
    seen: list[torch.Tensor] = []

    def look(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        acts = output.detach().cpu()
        seen.extend((acts.mean(), acts.std(), acts.abs().histc(40, 0, 10)))

    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, nn.ReLU)]
    bare(model, loader)
    for hook in hooks:
        hook.remove()


def ours(*cbs: Callable[[], Any]) -> Run:
    def run(model: nn.Module, loader: TensorLoader) -> None:
        opt = partial(torch.optim.SGD, momentum=MOMENTUM)
        dls = DataLoaders(loader, None)
        learn = TrainLearner(model, dls, F.cross_entropy, lr=LR, cbs=[cb() for cb in cbs], opt_func=opt)
        learn.fit(1, valid=False)

    return run


class Silent(MetricsCB):
    def _log(self, row: dict[str, Any]) -> None: ...


def metrics() -> MetricsCB:
    return Silent(accuracy=MulticlassAccuracy())


def fastai(model: nn.Module, loader: TensorLoader) -> None:
    import fastai.callback.progress  # noqa: F401 - brings no_bar
    from fastai.data.core import DataLoaders as FastaiLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    opt = partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=MOMENTUM))
    learn = Learner(FastaiLoaders(loader, loader), model, F.cross_entropy, opt_func=opt, lr=LR, train_bn=True)
    learn._do_epoch_validate = lambda *args, **kwargs: None
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)


def lightning(model: nn.Module, loader: TensorLoader) -> None:
    import lightning as L

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its import sets another

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, i: int) -> torch.Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM)

    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), loader)


def seconds(run: Run, model: nn.Module, loader: TensorLoader) -> float:
    gc.collect()
    torch.manual_seed(0)
    start = time.perf_counter()
    run(model, loader)
    return time.perf_counter() - start


def ratio(run: Run, model: nn.Module, loader: TensorLoader, pairs: int) -> tuple[float, float, float]:
    """Least, median and largest of time(run) / time(bare) over pairs that run in turn, after one that does not count."""
    found = []
    for i in range(pairs + 1):
        order = (bare, run) if i % 2 else (run, bare)
        took = {side: seconds(side, copy.deepcopy(model), loader) for side in order}
        found.append(took[run] / took[bare])
    found = sorted(found[1:])
    return found[0], statistics.median(found), found[-1]


ROWS: list[tuple[str, int, Run, float | None]] = [
    ("lsuvcb, MetricsCB", 64, ours(metrics), 1.08),
    ("lsuvcb, DeviceCB, MetricsCB, ProgressCB", 64, ours(DeviceCB, metrics, ProgressCB), None),
    ("lsuvcb, MetricsCB", 1024, ours(metrics), None),
    ("lsuvcb, MetricsCB, ActivationStats on 4 layers", 1024, ours(metrics, partial(ActivationStats, nn.ReLU)), 1.15),
    ("bare, the course's hooks on 4 layers", 1024, bare_with_hooks, None),
    ("fastai, no metrics", 64, fastai, None),
    ("fastai, no metrics", 1024, fastai, None),
    ("Lightning, no metrics", 64, lightning, None),
    ("Lightning, no metrics", 1024, lightning, None),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="leave fastai and Lightning out")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each row, of which the median counts")
    parser.add_argument("--images", type=int, default=20_000, help="images in the epoch")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    threads, cores = torch.get_num_threads(), os.cpu_count()
    print(f"torch {torch.__version__}, {platform.machine()}, {cores} cores, {threads} threads, {args.images} images\n")
    tensors = [t[: args.images] for t in fashion_mnist(device="cpu").train.dataset.tensors]
    torch.manual_seed(0)
    model = get_model()
    print("| loop, over a bare PyTorch loop | batch | ratio (least to largest) | bound |\n|---|---|---|---|")
    for name, bs, run, bound in ROWS:
        if args.fast and run in (fastai, lightning):
            continue
        try:
            least, middle, largest = ratio(run, model, TensorLoader(*tensors, bs=bs, shuffle=True), args.pairs)
            told = f"{middle:.2f} ({least:.2f} to {largest:.2f})"
        except ImportError:
            told = "not installed"
        print(f"| {name} | {bs} | {told} | {f'<= {bound}' if bound else ''} |", flush=True)


if __name__ == "__main__":
    main()
