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
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from .errors import InputScaleWarning, LSUVWarning, TrainedModelWarning, suggesting
from .keeping.undisturbed import undisturbed
from .measuring.pool import Group
from .model.blocks import BlockChange
from .model.trained import sign_of_training
from .model.weights import Weights
from .passes.forward import Forward, is_one_sample
from .passes.look import Loss
from .passes.measure import InputMoments
from .passes.plan import GIVEN, Goals, Orthonormal, Plan, Std
from .passes.runner import Runner
from .ranks import ranks_of
from .select import Selector
from .telling.report import LSUVReport
from .telling.rows import Row, no_layers, rows_of, surveyed, warn_if_missed, with_ties
from .telling.survey import Survey
from .telling.verdict import outlook
from .writing.commit import changes_of, commit
from .writing.undo import Undo


@suggesting
def lsuv_(
    model: nn.Module,
    batch: Any,
    *,
    recipe: str = "balanced",
    measure: Literal["layer", "activation"] = GIVEN,
    std: Std = GIVEN,
    mean: float | None = GIVEN,
    orthonormal: Orthonormal = GIVEN,
    layers: Selector | None = None,
    activations: Any = None,
    tol: float = 1e-3,
    max_iters: int = 20,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
    group: dist.ProcessGroup | None = None,
    verify: bool = True,
    mask: Any = None,
) -> LSUVReport:
    """Scale each layer's weight in place, first to last, so that its output on `batch` has the std (and mean) asked for.

    For each linear op y = op(x, W) + b in execution order: W <- s W and b <- s b + t, with s = std / sqrt(Var(y)) and
    t = mean - s E[y], or 0 where `mean` is None or there is no bias. The corrected output s y + t is handed on, so one
    forward serves all layers (see the module's docstring for the paper's symbols). Behind an activation f, s and t solve
    f(s W x + b + t) for the target by Newton's method on the layer's own output: W <- s W, b <- b + t.

    Args:
        model: any nn.Module with its values in place, on any device, in any mode, compiled or wrapped.
        batch: one batch of inputs as training sees them, a hundred samples or more for a good estimate: a tensor, a
            tuple or list of positional arguments, a mapping of keywords, a TensorDict, or whatever `forward` takes.
        recipe: the values of `measure`, `std`, `mean` and `orthonormal`
            that are not given:

                "balanced"   "layer", "auto", None, "delta"      a start that trains
                "paper"      "layer", 1, None, True              Algorithm 1 of the paper
                "course"     "activation", 1, 0, False           the fast.ai course's lesson

        measure: "layer": the layer's own output, before its activation. "activation": the output of the elementwise
            activation that takes the layer's output directly; at the layer where none does.
        std: target population std over all values of an output: a number > 0, or "auto": what suits the activation behind
            each layer at this depth (see solving/auto.py), 1 / sqrt(k + 1) of it at the end of the k-th branch that is added to
            a stream; layers with a normalisation right behind them and the head (it feeds no other weight) are left as they
            are. Or a mapping from selectors (as `layers`, or one name) to numbers or "leave", the first that means a layer; the
            recipe's for the rest.
        mean: target mean, reached through the bias; None leaves it alone.
        orthonormal: first draw the weights orthonormal as flat matrices and set the biases to zero (the paper's first step);
            "delta": where a convolution keeps size and channels, only in the middle tap of its kernel; False keeps the weights
            that the model has. A bias that was set on purpose (a value beyond 1 / sqrt(fan_in), or all equal and not zero) is
            kept in any case.
        layers: which layers, as a module type, a tuple of types, a predicate on the module, or a list of modules, of names as
            the report gives them, and of patterns ("*.out_proj"); None: every weight at work. What is named is done, whatever
            "auto" would leave.
        activations: for measure="activation", what counts as one besides torch's own: module types, modules, functions.
        tol: largest error of std and mean, as a part of `std`, > 0; a layer within it already is not touched. 1e-2 at
            least where weights or outputs are bf16 or fp16.
        max_iters: most evaluations of a layer that has no closed form, >= 1.
        forward: called as forward(model, batch) to run the model; None: see `batch`.
        generator: draws the orthonormal weights; None: torch's global CPU generator.
        group: moments are summed over the ranks of this process group; all of them must call, with equal weights. None: the group
            of a DDP model. The ranks of the meshes that hold parameters in shards (FSDP2, tensor parallel) are summed over in any
            case. Any other model is this process's own, and nothing is communicated.
        verify: measure every layer before and after with a pass of its own (3 passes in all); False: 1 pass. Models that use
            a weight several times, or an output in ways that show late, take more.
        mask: which values of an output count (padded positions do not): a boolean tensor over the leading dimensions (batch,
            time) that an output shares, the name of one in a mapping batch, or a function of (layer's name, output) that
            gives one, or None.

    Returns:
        LSUVReport: what was done to each weight, or why it was left alone. `print(report)` shows it.

    Raises:
        ValueError, TypeError: an argument out of its range, a batch that the model cannot take.
        NoLayersError: no weight at work was found or selected.
        LSUVError: non-finite outputs, a model on the meta device, a ScriptModule, one that DeepSpeed's ZeRO has in its hands.
        Whatever the model itself raises. After any exception, Ctrl-C too, all weights are bit for bit what they were.

    Warns:
        LSUVWarning: the batch holds one sample.
        InputScaleWarning: the std of what the first layer reads of the batch is below 1/5 or above 5.
        NotConvergedWarning: a layer is not at its target; it keeps its best try.
        TrainedModelWarning: a draw (`orthonormal`) for a model that looks trained: batch norms that have counted batches, norms
            whose scales differ, weights that a Hub class loaded.

    Side effects:
        The weights and biases that the report calls scaled, and nothing else: training flags, buffers, random
        generators (but for the orthonormal draw), hooks, gradients, parameter identity, dtype, device and memory
        format stay. The passes run without gradients (but for a forward that asks for some by torch.autograd.grad), in the
        modes that the model is in, under the autocast that is active.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        >>> report = lsuv_(net, torch.randn(256, 64))
        >>> report.converged, [layer.status for layer in report.layers], round(report.layers[0].std_after, 4)
        (True, ['scaled', 'left alone'], 1.0)

    References:
        Mishkin & Matas, "All you need is a good init", ICLR 2016, arXiv:1511.06422, Algorithm 1.
    """
    started = time.perf_counter()
    plan = Plan.of(
        recipe=recipe, measure=measure, std=std, mean=mean, orthonormal=orthonormal, layers=layers, activations=activations,
        tol=tol, max_iters=max_iters, generator=generator, mask=mask,
    )  # fmt: skip
    run = Runner(model, batch, forward, ranks_of(model, group), mask)
    plan = replace(plan, group=run.group)
    if run.group is None and is_one_sample(batch):
        said = "the batch holds one sample, whose std tells little of the others'; take a hundred or more."
        warnings.warn(said, LSUVWarning, stacklevel=3)
    if plan.draws:
        _warn_of_training(model)
    undo = Undo(generator)
    try:
        with undisturbed(model, batch) as snapshot:
            weights = Weights(model, layers)
            goals = Goals(plan, weights)
            draws = _draws(generator, run.group) if plan.draws else None
            before = run.measure(weights, plan, snapshot) if verify else None
            eye = run.solve(weights, goals, draws, snapshot)
            if not any(eye.trail.uses(w) and w.selected for w in weights.all):
                raise no_layers(run, snapshot, layers, eye.reasons)
            kept = {w for w, solution in eye.solutions.of.items() if solution.rule == "kept"}
            blocks = [BlockChange(weights.blocks[w], bias) for w, bias in eye.solutions.blocks.items()]
            commit([*changes_of(eye.solutions.of, eye.solutions.biases), *blocks], undo)
            snapshot.accept()
            for change in blocks:
                snapshot.renew(change.block.module)
            after = run.measure(weights, plan, snapshot) if verify else None
            rows = rows_of(eye, *({} if seen is None else seen.read(kept) for seen in (before, after)))
            report = _report(run, plan, rows, time.perf_counter() - started)
            _warn_of_input(run.input)
            warn_if_missed(report, rows)
        if draws is not None:
            _advance(generator, draws, run.group)
        return report
    except BaseException:
        undo.restore()
        raise


def _report(run: Runner, plan: Plan, rows: list[Row], seconds: float) -> LSUVReport:
    layers, ties = with_ties(rows)
    std, mean = run.input.numbers()
    after = [use for row in rows for use in row.surveyed()]
    says = outlook(after, plan.recipe) if after else ""
    return LSUVReport(layers, std, mean, run.passes, seconds, plan.std, plan.mean, plan.tol, plan.recipe, ties, says)


@suggesting
def survey(
    model: nn.Module, batch: Any, *, layers: Selector | None = None, forward: Forward | None = None, mask: Any = None,
    loss: Loss | None = None, backward: bool = True,
) -> Survey:  # fmt: skip
    """The signal and the gradient of every layer by depth, in one forward and one backward pass that change nothing.

    Args:
        model, batch, forward, mask: see `lsuv_`.
        layers: selectors, see `lsuv_`; None: every weight at work, at the output of its op.
        loss: a function of the model's output that gives one number, which the backward half differentiates. None: a random
            projection of all tensors in the output that carry a gradient, the same in each call.
        backward: look at the gradient, too: it takes the time and the memory of a training step. False: forward only.

    Returns:
        Survey, with a `verdict` on training. `print(survey)` shows it.

    Raises:
        As `lsuv_`; but outputs that are not finite are a finding, not an error.
        ValueError: `loss` gives no single number.

    Side effects:
        None: see `lsuv_`. No gradient is left, no hook of an optimizer or of DDP is called.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(9)))
        >>> survey(net, torch.randn(256, 64)).verdict
        'std falls from 0.566 to 0.0874 over 9 layers: vanishing; lsuv_ would help; it trains as it is'
    """
    if loss is not None and not callable(loss):
        raise TypeError(f"`loss` must be a function of the model's output, got {loss!r}.")
    if loss is not None and not backward:
        raise ValueError("`loss` does nothing with backward=False; leave one of them out.")
    run = Runner(model, batch, forward, mask=mask, name="survey")
    with undisturbed(model, batch) as snapshot:
        weights = Weights(model, layers)
        eye = run.look(weights, snapshot, loss, backward)
        rows, ties = surveyed(eye)
        if not rows:
            raise no_layers(run, snapshot, layers, eye.reasons)
    hidden = [w for w in weights.all if w.tensor.ndim > 1 and w not in eye.found and w.selected]
    return Survey(rows, *run.input.numbers(), len(hidden), ties, eye.silent)


def _draws(generator: torch.Generator | None, group: Group) -> torch.Generator:
    """The generator of the orthonormal draw: a copy, so that dropout draws the same in every pass; the first rank's."""
    source = generator or torch.default_generator
    state = source.get_state()
    return torch.Generator(source.device).set_state(state if group is None else group.agree(state))


def _advance(generator: torch.Generator | None, draws: torch.Generator, group: Group) -> None:
    """Move the generator on by the draw. Global ones differ from rank to rank, and only the first rank's was used."""
    if generator is not None:
        generator.set_state(draws.get_state())
    elif group is None or group.is_first:
        torch.set_rng_state(draws.get_state())


def _warn_of_input(input: InputMoments) -> None:
    std, _ = input.numbers()
    if std is None or 0.2 <= std <= 5:
        return
    if std == 0:
        what = "all values of the batch are equal; nothing of it tells one sample from another"
    else:
        what = (
            f"the batch has std {std:.3g}; LSUV sets every layer behind it to the target, but training is better served by "
            "inputs of unit variance: normalise them first, `(x - mean) / std` with the training set's"
        )
    warnings.warn(f"{what}.", InputScaleWarning, stacklevel=4)


def _warn_of_training(model: nn.Module) -> None:
    if sign := sign_of_training(model):
        warnings.warn(
            f"{sign}: this model looks trained, and the orthonormal step replaces its weights. Use `orthonormal=False` to "
            "rescale the weights that it has.",
            TrainedModelWarning,
            stacklevel=4,
        )
