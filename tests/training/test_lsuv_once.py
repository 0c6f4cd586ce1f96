"""LSUVCallback: once, before a model's first real step; trained weights are left alone, and what is not done is said."""

from types import SimpleNamespace

import pytest
import torch
from tiny import learner
from torch import nn

from lsuvcb import CheckpointCB, LSUVCallback, TrainLearner
from lsuvcb.nets import ConvLayer


def dls(n=2):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=g)
    return SimpleNamespace(train=[(x, x[:, :2])] * n, valid=[(x, x[:, :2])])


def plain(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def normed(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def stds(model):
    """The test's own: the std of each linear layer's output on the training batch."""
    found, hooks = [], []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(lambda m, i, y: found.append(y.std(correction=0).item())))
    with torch.no_grad():
        model(dls().train[0][0])
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture
def said(capsys):
    """What was printed since it was asked last: the lines of LSUV."""
    return lambda: [line for line in capsys.readouterr().out.splitlines() if line.startswith("LSUV")]


def start(model, *cbs, **kw):
    """A fit that trains and moves nothing (lr 0)."""
    learner(cbs, dls(), model).fit(1, valid=False, lr=0.0, **kw)


# A trial is no run


def test_lr_find_initialises_and_the_fit_behind_it_starts_from_those_weights(said):
    model, cb = plain(), LSUVCallback()
    learn = learner([cb], dls(40), model)
    learn.lr_find()
    assert cb.report.converged
    found = weights(model)
    assert stds(model)[:2] == pytest.approx([1, 1], abs=1e-3)
    learn.fit(1, valid=False, lr=0.0)
    assert same(found, weights(model))
    first, second = said()
    assert first.startswith("LSUV: 2 of 2 layers at std 1")
    assert (
        second == "LSUV: left alone: LSUVCallback() has initialised this model; LSUVCallback(force=True) does it anew."
    )


def test_lr_find_with_one_callback_leaves_the_layers_of_another_to_the_fit(said):
    model, hidden = plain(), LSUVCallback(layers=["0", "2"], orthonormal=False)
    learner([hidden], dls(40), model).lr_find()
    head = LSUVCallback(layers=["4"], std=0.1, orthonormal=False)
    start(model, hidden, head)
    assert stds(model) == pytest.approx([1, 1, 0.1], rel=1e-3)


def test_survey_is_a_trial_and_initialises_nothing(said):
    model = plain()
    before = weights(model)
    learner([LSUVCallback()], dls(), model).survey()
    assert same(before, weights(model))
    assert said() == []


# Trained weights


def trained(make):
    model = make(seed=1)
    TrainLearner(model, dls(20), lr=0.1).fit(2)
    return model.state_dict()


def test_state_dict_of_a_net_with_norms_is_left_alone_and_named(said):
    model = normed()
    model.load_state_dict(trained(normed))
    before, cb = weights(model), LSUVCallback()
    start(model, cb)
    assert same(before, weights(model))
    assert cb.report is None
    assert said() == [
        "LSUV: left alone: this model is trained, it seems ('1' (LayerNorm) has scales that differ from one another); "
        "LSUVCallback(force=True) does it anew."
    ]
    start(model, LSUVCallback(force=True, recipe="paper"))
    assert not same(before, weights(model))


def test_weights_read_by_load_are_left_alone_and_named(said, tmp_path):
    torch.save(trained(plain), tmp_path / "weights.pt")
    model, cb = plain(), LSUVCallback()
    learn = learner([cb], dls(), model)
    learn.load(tmp_path / "weights.pt")
    before = weights(model)
    learn.fit(1, valid=False, lr=0.0)
    assert same(before, weights(model))
    assert "read from a file by `learn.load`" in said()[0]


def test_weights_that_a_learner_has_trained_without_lsuv_are_left_alone(said):
    model = plain()
    TrainLearner(model, dls(), lr=0.1).fit(1)
    before = weights(model)
    start(model, LSUVCallback())
    assert same(before, weights(model))
    assert said()[0].startswith("LSUV: left alone: this model is trained, it seems (by a Learner)")


def test_fit_that_failed_before_its_first_step_has_trained_nothing(said):
    model = plain()
    with pytest.raises(TypeError):
        learner([], dls(), model, loss_func=lambda preds: preds).fit(1)
    start(model, LSUVCallback())
    assert stds(model)[:2] == pytest.approx([1, 1], abs=1e-3)


def test_resumed_fit_is_left_alone_even_by_force_and_so_is_the_fit_behind_it(said, tmp_path):
    learner([CheckpointCB(tmp_path)], dls(), plain(1), lr=0.1).fit(1)
    model = plain()
    learn = learner([CheckpointCB(tmp_path), LSUVCallback(force=True)], dls(), model)
    learn.fit(1, resume=tmp_path)
    assert said() == [
        "LSUV: left alone: this run resumes from a checkpoint, whose weights are trained; begin a run without one to initialise."
    ]
    before = weights(model)
    start(model, LSUVCallback())
    assert same(before, weights(model))
    assert "(by a fit that was resumed)" in said()[0]


# Nothing done is said


def test_second_fit_new_learner_and_other_arguments_are_left_alone_in_one_line_each(said):
    model, cb = plain(), LSUVCallback()
    learn = learner([cb], dls(), model, lr=0.01)
    learn.fit(1)
    said()
    before, report = weights(model), cb.report
    learn.fit(1, lr=0.0)
    start(model, cb)
    other = LSUVCallback(std=0.5)
    start(model, other)
    assert same(before, weights(model))
    assert (cb.report, other.report) == (report, None)
    same_line = (
        "LSUV: left alone: LSUVCallback() initialised this model, which was trained since (by a Learner); "
        "LSUVCallback(force=True) does it anew."
    )
    assert said() == [same_line, same_line, same_line.replace("(force=True)", "(force=True, std=0.5)")]


def test_weights_made_anew_by_hand_are_left_alone_and_it_is_said_how_to_have_it_done(said):
    model = plain()
    learner([LSUVCallback()], dls(), model).lr_find()
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    said()
    start(model, LSUVCallback())
    assert said() == [
        "LSUV: left alone: LSUVCallback() initialised this model, whose weights were trained or replaced since; "
        "LSUVCallback(force=True) does it anew."
    ]
    start(model, LSUVCallback(force=True))
    assert stds(model)[:2] == pytest.approx([1, 1], abs=1e-3)


def test_fit_that_does_not_train_says_nothing(said):
    learner([LSUVCallback()], dls(), plain()).fit(1, train=False)
    assert said() == []


def test_two_callbacks_for_different_layers_both_run(said):
    model = plain()
    hidden, head = LSUVCallback(layers=["0", "2"]), LSUVCallback(layers=["4"], std=0.1)
    start(model, hidden, head)
    assert stds(model) == pytest.approx([1, 1, 0.1], rel=1e-3)
    assert [line[:27] for line in said()] == [
        "LSUV: 2 of 2 layers at std 1"[:27],
        "LSUV: 1 of 1 layers at std 0.1"[:27],
    ]
    assert [row.name for row in head.report.layers if row.status == "scaled"] == ["4"]


def test_second_callback_for_all_layers_takes_those_that_are_left(said):
    model = plain()
    start(model, LSUVCallback(layers=nn.Linear, std=2.0, orthonormal=False), LSUVCallback())
    assert stds(model) == pytest.approx([2, 2, 2], rel=1e-3)
    assert said()[1].startswith("LSUV: left alone: LSUVCallback(layers=<class ")
    model = plain()
    start(model, LSUVCallback(layers=["0"], std=2.0), LSUVCallback(std=0.1, orthonormal=False))
    assert stds(model) == pytest.approx([2, 0.1, 0.1], rel=1e-3)


def test_layer_inside_a_block_that_was_initialised_is_not_taken_again(said):
    torch.manual_seed(0)
    model = nn.Sequential(ConvLayer(1, 4), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(32, 1, 4, 4)
    data = SimpleNamespace(train=[(x, torch.zeros(32, 2))])
    cbs = [LSUVCallback(layers=ConvLayer, mean=0.0, orthonormal=False), LSUVCallback(recipe="paper", orthonormal=False)]
    learner(cbs, data, model).fit(1, valid=False, lr=0.0)
    out = model[0](x)
    assert (out.mean().item(), out.std(correction=0).item()) == pytest.approx((0, 1), abs=2e-3)
    assert [(r.name, r.status) for r in cbs[1].report.layers if r.status == "scaled"] == [("2", "scaled")]


def test_callback_for_other_layers_in_a_later_fit_finds_a_trained_model(said):
    model = plain()
    learner([LSUVCallback(layers=["0", "2"])], dls(), model, lr=0.01).fit(1)
    before = weights(model)
    start(model, LSUVCallback(layers=["4"]))
    assert same(before, weights(model))
    assert "which was trained since" in said()[1]


def test_copy_of_a_model_knows_what_it_has_been_through(said):
    import copy
    import pickle

    model = plain()
    start(model, LSUVCallback())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = weights(twin)
        start(twin, LSUVCallback())
        assert same(before, weights(twin))
