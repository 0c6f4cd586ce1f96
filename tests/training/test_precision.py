"""Autocast around the model and the loss, scaled gradients, clipping."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny import learner, line, loaders, net
from torch import nn

from lsuvcb import CancelBatchException, GradientClipCB, LSUVCallback, MixedPrecisionCB, MomentumLearner, TrainLearner
from lsuvcb.training.events import Callback

HALF = torch.float16


class Seen(Callback):
    """What types the model and the loss gave, and the gradients behind clipping and before the step."""

    order = 60

    def after_loss(self, learn):
        self.preds, self.loss = learn.preds.dtype, learn.loss.dtype
        self.cast = torch.is_autocast_enabled("cpu")

    def after_backward(self, learn):
        self.grads = [p.grad.clone() for p in learn.model.parameters()]


def test_model_runs_in_bf16_weights_and_loss_stay_float32():
    seen, model = Seen(), line(0.5)
    learner([MixedPrecisionCB(), seen], model=model).fit(1)
    assert (seen.preds, seen.loss) == (torch.bfloat16, torch.float32)
    assert model.weight.dtype == torch.float32
    assert not seen.cast  # only the steps are wrapped


def test_autocast_ends_with_the_fit():
    seen, learn = Seen(), learner()
    learn.fit(1, cbs=[MixedPrecisionCB(), seen])
    learn.fit(1, cbs=seen)
    assert seen.preds == torch.float32


def test_lsuv_s_batch_runs_under_the_same_autocast(capsys):
    dtypes = []
    model, dls = net(), SimpleNamespace(train=[(torch.randn(16, 5), torch.randn(16, 2))] * 2)
    model[0].register_forward_hook(lambda m, i, o: dtypes.append(o.dtype))
    learner([LSUVCallback(verify=False), MixedPrecisionCB()], dls, model).fit(1, valid=False, lr=0.01)
    assert set(dtypes) == {torch.bfloat16}
    assert len(dtypes) == 3  # LSUV's pass and two batches


def test_float16_gradients_are_unscaled_before_callbacks_and_the_step():
    cb, seen, model = MixedPrecisionCB(HALF), Seen(), line(0.0)
    learner([seen, cb], loaders(train=5), model, lr=0.1).fit(1)
    # 2^16 and 2^15 times the first gradient, -2, are too much for float16: two steps are left out. Then as in
    # float32: w 0, 0.2, 0.36, 0.488; the last gradient 2 (0.36 - 1)
    assert seen.grads[0].item() == pytest.approx(-1.28, rel=1e-2)
    assert model.weight.item() == pytest.approx(0.488, rel=1e-2)
    assert cb.scaler.get_scale() == 2.0**14


def test_float16_step_with_an_overflow_is_left_out_and_the_scale_halved():
    cb, model = MixedPrecisionCB(HALF), line(0.0)
    learn = learner([cb], loaders(train=1), model, loss_func=lambda p, t: ((p - t) * 1e30).mean())
    learn.fit(1, valid=False)
    assert model.weight.item() == 0.0
    assert cb.scaler.get_scale() == 2.0**15


class EveryOther(Callback):
    """Gradients of two batches for each step."""

    order = GradientClipCB.order + 1

    def after_backward(self, learn):
        if learn.iter % 2 == 0:
            raise CancelBatchException


def test_float16_gradients_of_a_cancelled_batch_stay_as_in_float32():
    weights = []
    for mixed in ([], [MixedPrecisionCB(HALF)]):
        learn = learner(
            [*mixed, EveryOther()], loaders(train=6), line(0.0), lr=1.0, loss_func=lambda p, t: 0.01 * F.mse_loss(p, t)
        )
        learn.fit(1)
        learn.lr_find(max_epochs=1)  # its copies of the callbacks begin anew
        weights.append(learn.model.weight.item())
    assert weights[0] > 0.1
    assert weights[1] == pytest.approx(weights[0], rel=1e-2)


def test_float16_for_a_learner_that_keeps_gradients_is_an_error_with_advice():
    learn = MomentumLearner(line(), loaders(), cbs=MixedPrecisionCB(HALF))
    with pytest.raises(ValueError, match=r"MomentumLearner keeps them: use TrainLearner with opt_func=partial"):
        learn.fit(1)


def test_float16_steps_of_a_learner_subclass_equal_those_of_callbacks():
    weights = []
    for make in (TrainLearner, learner):
        model = line(0.0)
        if make is TrainLearner:
            make(model, loaders(train=3), cbs=[MixedPrecisionCB(HALF)]).fit(1)
        else:
            make([MixedPrecisionCB(HALF)], loaders(train=3), model).fit(1)
        weights.append(model.weight.item())
    assert weights[0] == weights[1]


def test_precision_of_another_type_is_an_error():
    with pytest.raises(ValueError, match=r"must be torch.bfloat16 or torch.float16, got torch.float64"):
        MixedPrecisionCB(torch.float64)


# GradientClipCB


class Pair(nn.Module):
    """Its gradients at the first step are (-6, -8): norm 10."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return (3 * self.a + 4 * self.b - 1) ** 2 + 0 * x.sum()


def one_step(*cbs):
    model = Pair()
    learner(cbs, loaders(train=1), model, lr=1.0, loss_func=lambda p, t: p).fit(1, valid=False)
    return model.a.item(), model.b.item()


def test_gradients_are_scaled_to_the_largest_norm():
    clip = GradientClipCB(5.0)
    assert one_step(clip) == pytest.approx((3, 4))
    assert clip.norm.item() == pytest.approx(10)


def test_gradients_below_the_largest_norm_are_left_alone():
    assert one_step(GradientClipCB(11.0)) == pytest.approx((6, 8))


def test_gradients_are_cut_at_the_largest_value():
    assert one_step(GradientClipCB(max_value=7.0)) == pytest.approx((6, 7))


def test_clipping_sees_unscaled_gradients():
    assert one_step(GradientClipCB(5.0), MixedPrecisionCB(HALF)) == pytest.approx((3, 4), rel=1e-2)


@pytest.mark.parametrize("arguments", [{}, {"max_norm": 0}, {"max_norm": 1, "max_value": 1}])
def test_clipping_without_one_limit_is_an_error(arguments):
    with pytest.raises(ValueError, match="give one of `max_norm` and `max_value`, > 0"):
        GradientClipCB(**arguments)


def test_mixed_precision_trains_as_float32_does():
    losses = []
    for cbs in ([], [MixedPrecisionCB()], [MixedPrecisionCB(HALF), GradientClipCB(10.0)]):
        torch.manual_seed(0)
        model = nn.Linear(1, 1)
        learn = TrainLearner(
            model, loaders(train=50), lr=0.05, cbs=cbs, opt_func=partial(torch.optim.SGD, momentum=0.5)
        )
        learn.fit(1, valid=False)
        losses.append(learn.loss.item())
    assert all(loss < 1e-3 for loss in losses)
