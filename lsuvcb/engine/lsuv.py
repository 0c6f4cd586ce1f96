"""Layer-sequential unit-variance initialization: `lsuv_` and `survey`.

The method and its symbols (Mishkin & Matas, "All you need is a good init", ICLR 2016, arXiv:1511.06422, Algorithm 1):

    B_l         output of layer l before its activation, on one mini-batch         `y` in the code
    Var(B_l)    one population variance over the whole blob                        `found.std ** 2`
    W_l         its weight; first drawn orthonormal, biases zero                   `start`
    W_l <- W_l / sqrt(Var(B_l))                                                    `scale` = std / sqrt(Var(B_l))
    Tol_var     the largest |Var(B_l) - 1| that ends the tries                     `tol` (of the std)
    T_max       the largest number of tries                                        `max_iters`

The paper runs the model again for each layer and each try. An output linear in its weight can be corrected where it
appears and handed on, so one forward does for any depth; layers come in execution order because that is how they run.
"""

from __future__ import annotations

import time
import warnings
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from .errors import InputScaleWarning, TrainedModelWarning
from .keeping.undisturbed import undisturbed
from .model.trained import sign_of_training
from .model.weights import Weights
from .passes.measure import Look
from .passes.runner import Forward, Runner, plan_of
from .ranks import agree, group_of
from .select import Selector
from .telling.report import LayerSurvey, LSUVReport, Survey
from .telling.rows import layer_reports, no_layers, warn_if_missed
from .writing.commit import changes_of, commit
from .writing.undo import Setting, Undo


def lsuv_(
    model: nn.Module,
    batch: Any,
    *,
    measure: Literal["layer", "activation"] = "layer",
    std: float = 1.0,
    mean: float | None = None,
    orthonormal: bool = True,
    layers: Selector | None = None,
    activations: Any = None,
    tol: float = 1e-3,
    max_iters: int = 20,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
    group: dist.ProcessGroup | None = None,
    verify: bool = True,
) -> LSUVReport:
    """Scale each layer's weight in place, first to last, so that its output on `batch` has the std (and mean) asked for.

    For each linear op y = op(x, W) + b in execution order: W <- s W and b <- s b + t, with s = std / sqrt(Var(y)) and
    t = mean - s E[y], or 0 where `mean` is None or there is no bias. The corrected output s y + t is handed on, so one
    forward serves all layers (see the module's docstring for the paper's symbols). Behind an activation f, s and t solve
    f(s W x + b + t) for the target by Newton's method on the layer's own output: W <- s W, b <- b + t.

    Args:
        model: any nn.Module with its values in place, on any device, in any mode, compiled or wrapped.
        batch: one batch of inputs as training sees them, a hundred samples or more for a good estimate: a tensor, a
            tuple or list of positional arguments, a mapping of keywords, or whatever `forward` takes.
        measure: "layer" (the paper): the layer's own output, before its activation. "activation" (the course): the output
            of the elementwise activation that takes the layer's output directly; at the layer where none does.
        std: target population std over all values of an output, > 0.
        mean: target mean, reached through the bias; None (the paper) leaves it alone.
        orthonormal: first draw the weights orthonormal and set the biases to zero (the paper's first step); False
            keeps the weights that the model has.
        layers: which layers, as a module type, a tuple of types, a predicate on the module, or a list of modules or of
            names as the report gives them; None: every weight at work.
        activations: for measure="activation", what counts as one besides torch's own: module types, modules, functions.
        tol: largest error of std and mean, as a part of `std`, > 0; a layer within it already is not touched. 1e-2 at
            least where weights or outputs are bf16 or fp16.
        max_iters: most evaluations of a layer that has no closed form, >= 1.
        forward: called as forward(model, batch) to run the model; None: see `batch`.
        generator: draws the orthonormal weights; None: torch's global CPU generator.
        group: moments are summed over the ranks of this process group; all of them must call, with equal weights. None:
            the group of a DDP or FSDP2 model; any other model is this process's own, and nothing is communicated.
        verify: measure every layer before and after with a pass of its own (3 passes in all); False: 1 pass.

    Returns:
        LSUVReport: what was done to each weight, or why it was left alone. `print(report)` shows it.

    Raises:
        ValueError, TypeError: an argument out of its range, a batch that the model cannot take.
        NoLayersError: no weight at work was found or selected.
        LSUVError: non-finite outputs, a model on the meta device, a ScriptModule.
        Whatever the model itself raises. After any exception, Ctrl-C too, all weights are bit for bit what they were.

    Warns:
        InputScaleWarning: the batch's std is below 1/5 or above 5.
        TrainedModelWarning: `orthonormal=True` on a model that looks trained: batch norms that have counted batches, norms
            whose scales differ, weights that a Hub class loaded.

    Side effects:
        The weights and biases that the report calls scaled, and nothing else: training flags, buffers, random
        generators (but for the orthonormal draw), hooks, gradients, parameter identity, dtype, device and memory
        format stay. The passes run without gradients, in the modes that the model is in, under the autocast that is active.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        >>> report = lsuv_(net, torch.randn(256, 64))
        >>> report.converged, [f"{layer.std_after:.4f}" for layer in report.layers]
        (True, ['1.0000', '1.0000'])

    References:
        Mishkin & Matas, "All you need is a good init", ICLR 2016, arXiv:1511.06422, Algorithm 1.
    """
    plan = plan_of(measure, std, mean, tol, max_iters, layers, activations, group_of(model, group))
    group = plan.group
    began = time.perf_counter()
    run = Runner(model, batch, forward, group)
    _warn_of_input(run)
    if orthonormal:
        _warn_of_training(model)
    undo = Undo(generator)
    try:
        with undisturbed(model, batch) as run.snapshot:
            draws = _draws(generator, group) if orthonormal else None
            before = run.measure(plan) if verify else {}
            eye, values = run.scale(plan, draws)
            if not any(w.uses and not w.unselected for w in eye.weights.all):
                raise no_layers(run, layers, eye.weights.all)
            changes = changes_of(eye.solutions, eye.biases, values)
            settings = [Setting(w.block, eye.block_biases[w]) for w in eye.solutions if w.block is not None]
            commit(changes, settings, undo)
            run.snapshot.accept()
            for block, _ in settings:
                run.snapshot.renew(block.module)
            after = run.measure(plan) if verify else {}
            rows = layer_reports(eye, values, before, after)
            seconds = time.perf_counter() - began
            report = LSUVReport(rows, run.input_std, run.input_mean, run.passes, seconds, std, mean, tol)
            warn_if_missed(report, eye)
        if draws is not None:
            _advance(generator, draws, group)
        return report
    except BaseException:
        undo.restore()
        raise


def survey(model: nn.Module, batch: Any, *, layers: Selector | None = None, forward: Forward | None = None) -> Survey:
    """Mean and std of every layer's output by depth, in one pass that changes nothing: do I need LSUV?

    Args:
        model, batch, forward: as for `lsuv_`.
        layers: the same selectors; None: every weight at work, at the output of its op.

    Returns:
        Survey, with a `verdict`. `print(survey)` shows it.

    Raises:
        As `lsuv_`; but outputs that are not finite are a finding, not an error.

    Side effects:
        None: see `lsuv_`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(9)))
        >>> survey(net, torch.randn(256, 64)).verdict
        'std falls from 0.566 to 0.0874 over 9 layers: vanishing; lsuv_ would help'
    """
    run = Runner(model, batch, forward)
    with undisturbed(model, batch) as run.snapshot:
        eye = run.watch(Look(Weights(model, layers)))
        found = [w for w in eye.weights.met if w.name in eye.found and not w.unselected]
        if not found:
            raise no_layers(run, layers, eye.weights.all)
    numbers, signals = eye.read(), eye.read_signals()
    rows = [LayerSurvey(w.name, w.kind, *numbers[w.name], signals.get(w.name)) for w in found]
    hidden = [w for w in eye.weights.all if w.tensor.ndim > 1 and w.name not in eye.found and not w.unselected]
    return Survey(rows, run.input_std, run.input_mean, len(hidden))


def _draws(generator: torch.Generator | None, group: dist.ProcessGroup | None) -> torch.Generator:
    """The generator of the orthonormal draw: a copy, so that dropout draws the same in every pass; the first rank's."""
    source = generator or torch.default_generator
    state = source.get_state()
    return torch.Generator(source.device).set_state(state if group is None else agree(state, group))


def _advance(generator: torch.Generator | None, draws: torch.Generator, group: dist.ProcessGroup | None) -> None:
    """Move the generator on by the draw. Global ones differ from rank to rank, and only the first rank's was used."""
    if generator is not None:
        generator.set_state(draws.get_state())
    elif group is None or dist.get_rank(group) == 0:
        torch.set_rng_state(draws.get_state())


def _warn_of_input(run: Runner) -> None:
    if run.input_std is not None and (run.input_std < 0.2 or run.input_std > 5):
        warnings.warn(
            f"the batch has std {run.input_std:.3g}; LSUV sets every layer behind it to the target, but training is better "
            "served by inputs of unit variance: normalise them first, `(x - mean) / std` with the training set's.",
            InputScaleWarning,
            stacklevel=3,
        )


def _warn_of_training(model: nn.Module) -> None:
    if sign := sign_of_training(model):
        warnings.warn(
            f"{sign}: this model looks trained, and the orthonormal step replaces its weights. Use `orthonormal=False` to "
            "rescale the weights that it has.",
            TrainedModelWarning,
            stacklevel=3,
        )
