"""What LSUV costs in plain forwards of the same model, beside the packages `lsuv` and `anyinit`; and a survey in training steps.

    pip install -e '.[bench]' && python tests/benchmarks/engine.py

Each row is a ratio within one run on one machine: the time of the initialisation over that of a forward without gradients, or of
the survey over that of a forward and backward. Each measurement has a fresh copy of the model. `--fast` leaves the peers and the
orthonormal step out.
"""

import argparse
import contextlib
import copy
import gc
import io
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torchvision.models as tv
from study.nets import plain_conv
from torch import nn

from lsuvcb import lsuv_, survey
from lsuvcb.engine.solving.orthonormal import orthonormal_
from lsuvcb.nets import GeneralRelu, get_model


def mlp(depth: int, width: int = 256) -> nn.Sequential:
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers)


def course() -> nn.Sequential:
    return get_model(partial(GeneralRelu, leak=0.1, sub=0.4))


def seconds(run: Callable[[], object]) -> float:
    """As timeit does it: Python's garbage collector waits meanwhile."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    finally:
        gc.enable()


def ratio(
    make: Callable[[], nn.Module], call: Callable[[nn.Module], object], runs: int, unit: Callable[[nn.Module], object]
) -> float:  # fmt: skip
    """Median over `runs` of the time of call(model), each over that of a unit timed right before and right after it."""
    torch.manual_seed(0)
    fresh = make().eval()
    plain = copy.deepcopy(fresh)
    unit(plain)
    unit(plain)
    found = []
    for _ in range(runs):
        model = copy.deepcopy(fresh)
        before = seconds(lambda: unit(plain))
        cost = seconds(lambda model=model: call(model))
        after = seconds(lambda: unit(plain))
        found.append(cost / ((before + after) / 2))
    return statistics.median(found)


@torch.no_grad()
def forward(x: torch.Tensor, model: nn.Module) -> None:
    model(x)


def step(x: torch.Tensor, model: nn.Module) -> None:
    """A training step without the optimizer's."""
    model.zero_grad()
    _loss(model(x)).backward()


def _loss(out: torch.Tensor) -> torch.Tensor:
    return out.square().mean()


def lsuv(recipe: str) -> Callable[[torch.Tensor], Callable[[nn.Module], object]]:
    """The passes alone, without the draw, whose cost is that of its QR."""

    def init(x: torch.Tensor) -> Callable[[nn.Module], object]:
        return lambda model: lsuv_(model, x, recipe=recipe, orthonormal=False, verify=False)

    return init


def peer_lsuv(x: torch.Tensor) -> Callable[[nn.Module], object]:
    from lsuv import lsuv_with_singlebatch

    return lambda model: lsuv_with_singlebatch(
        model, x, std_tol=1e-3, max_attempts=20, do_orthonorm=False, verbose=False
    )


def peer_anyinit(x: torch.Tensor) -> Callable[[nn.Module], object]:
    import anyinit

    return lambda model: anyinit.initialize(model, mode="empirical", input_spec=lambda: x)


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def attempt(make: Callable[[], nn.Module], x: torch.Tensor, peer: Callable[[torch.Tensor], Callable]) -> str:
    try:
        with quiet():
            return f"{ratio(make, peer(x), 1, partial(forward, x)):.0f}"
    except ImportError:
        return "not installed"
    except Exception as error:  # a peer may fail in any way; the table says that it did
        return type(error).__name__


def costs(peers: bool, runs: int) -> None:
    image, digits = torch.randn(8, 3, 224, 224), torch.randn(1024, 1, 28, 28)
    vector = torch.randn(512, 256)
    rows = [
        ("resnet50, 224, batch 8", tv.resnet50, image, "paper", 1.25, runs),
        ("vgg11, 224, batch 8", tv.vgg11, image, "paper", 1.25, runs),
        ("resnet50, 224, batch 8", tv.resnet50, image, "balanced", 1.25, runs),
        ("vgg11, 224, batch 8", tv.vgg11, image, "balanced", 1.25, runs),
        ("MLP of 400 layers, width 256, batch 512", partial(mlp, 400), vector, "paper", 1.6, 3 * runs),
        ("MLP of 400 layers, width 256, batch 512", partial(mlp, 400), vector, "balanced", 2.0, 3 * runs),
        ("course model, batch 1024", course, digits, "course", 8, 5 * runs),
    ]
    print("| cost in plain forwards | recipe | lsuvcb | bound | lsuv | anyinit |\n|---|---|---|---|---|---|")
    for name, make, x, recipe, bound, n in rows:
        ours = ratio(make, lsuv(recipe)(x), n, partial(forward, x))
        peer = peers and recipe != "balanced"  # once for each model
        others = [attempt(make, x, other) if peer else "-" for other in (peer_lsuv, peer_anyinit)]
        print(f"| {name} | {recipe} | {ours:.2f} | <= {bound} | {' | '.join(others)} |", flush=True)


def growth(runs: int) -> None:
    x = torch.randn(512, 256)
    print("\n| layers (MLP, width 256, batch 512) | in plain forwards | ms per layer |\n|---|---|---|")
    for depth in (25, 50, 100, 200, 400):
        model = mlp(depth)
        copies = [copy.deepcopy(model) for _ in range(runs + 1)]
        init = lsuv("paper")(x)
        init(copies.pop())
        each = min(seconds(partial(init, m)) for m in copies) / depth
        print(
            f"| {depth} | {ratio(partial(mlp, depth), init, runs, partial(forward, x)):.2f} | {1e3 * each:.3f} |",
            flush=True,
        )


def looks(runs: int) -> None:
    """What a survey costs, its backward half with it."""
    rows = [
        ("resnet50, 224, batch 8", tv.resnet50, torch.randn(8, 3, 224, 224), runs),
        ("vgg11, 224, batch 8", tv.vgg11, torch.randn(8, 3, 224, 224), runs),
        ("MLP of 400 layers, width 256, batch 512", partial(mlp, 400), torch.randn(512, 256), runs),
        ("conv net of 50 layers, width 16, batch 512", partial(plain_conv, 50), torch.randn(512, 1, 8, 8), 3 * runs),
        ("the same, batch 64", partial(plain_conv, 50), torch.randn(64, 1, 8, 8), 3 * runs),
    ]
    print("\n| survey, in training steps without the optimizer's | lsuvcb | bound |\n|---|---|---|")
    for name, make, x, n in rows:
        ours = ratio(make, partial(survey, batch=x, loss=_loss), n, partial(step, x))
        print(f"| {name} | {ours:.2f} | <= 1.5 |", flush=True)


def orthonormal_step() -> None:
    print("\n| orthonormal step (QR) | seconds |\n|---|---|")
    for shape in ((512, 512, 3, 3), (4096, 4096), (4096, 9216)):
        print(
            f"| {'x'.join(map(str, shape))} | {seconds(lambda s=shape: orthonormal_(torch.empty(s))):.2f} |", flush=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="leave the peers and the orthonormal step out")
    parser.add_argument("--runs", type=int, default=5, help="measurements of each row, of which the median counts")
    args = parser.parse_args()
    threads, cores = torch.get_num_threads(), os.cpu_count()
    print(f"torch {torch.__version__}, {platform.machine()}, {cores} cores, {threads} threads\n")
    looks(args.runs)
    costs(peers=not args.fast, runs=args.runs)
    growth(args.runs)
    if not args.fast:
        orthonormal_step()
