"""LSUVCallback in fastai: the model is initialised, and the fit is otherwise what it was."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from required import need_package
from signatures import arguments, of_a_callback
from torch import nn

from lsuvcb import lsuv_

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # at import, fastai's own deprecations
    need_package("fastai")
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.torch_core import TensorImage

    from lsuvcb.integrations.fastai import LSUVCallback

pytestmark = pytest.mark.filterwarnings("ignore")


class Items:
    """Rows to classify."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(96, 16, generator=g), torch.randint(0, 4, (96,), generator=g)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] * (1 + torch.rand(())), self.y[i]  # an augmentation


class Net(nn.Module):
    """Its dropout draws; its state lives in an attribute, as fastai's language models have it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)
        )
        self.hidden = torch.zeros(())
        self.calls = []

    def forward(self, x):
        assert self.training or not torch.is_grad_enabled()
        self.hidden += 1
        self.calls.append(len(x))
        return self.layers(x)


class Watch(Callback):
    """The batches and losses of training, and a number drawn at each."""

    def __init__(self):
        self.xs, self.losses_seen, self.draws = [], [], []

    def after_batch(self):
        if self.training:
            self.xs.append(self.xb[0].clone())
            self.losses_seen.append(self.loss.item())
            self.draws.append((float(torch.rand(())), random.random()))


def learner(*cbs, model=None, items=None, lr=0.1, **options):
    random.seed(3)
    items = Items() if items is None else items
    train = DataLoader(items, bs=32, shuffle=True, **options)
    dls = DataLoaders(train, DataLoader(Items(), bs=32), device=torch.device("cpu"))
    watch = Watch()
    learn = Learner(dls, Net() if model is None else model, F.cross_entropy, lr=lr, cbs=[*cbs, watch], train_bn=False)
    return learn, watch


def fit(learn, epochs=1, seed=5, **options):
    torch.manual_seed(seed)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, **options)


def test_model_is_initialised_on_the_first_training_batch(capsys):
    cb = LSUVCallback(recipe="paper")
    learn, watch = learner(cb)
    fit(learn)
    assert cb.report.converged
    assert [row.name for row in cb.report.layers] == ["layers.0", "layers.3", "layers.5"]
    assert "LSUV: 3 of 3 layers at std 1" in capsys.readouterr().out
    assert cb.report.input_std == pytest.approx(watch.xs[0].std(correction=0).item(), rel=1e-6)


def test_weights_are_those_of_lsuv_on_that_batch():
    cb = LSUVCallback(orthonormal=False)
    learn, watch = learner(cb, lr=0.0)
    fit(learn)
    by_hand = Net()
    lsuv_(by_hand, watch.xs[0], orthonormal=False, verify=False)
    assert torch.allclose(learn.model.layers[0].weight, by_hand.layers[0].weight, rtol=1e-4)
    assert not torch.allclose(learn.model.layers[0].weight, Net().layers[0].weight, rtol=1e-2)


def test_fit_sees_the_batches_and_draws_that_it_would_have_seen():
    plain, plain_watch = learner()
    fit(plain, 2)
    learn, watch = learner(LSUVCallback())
    fit(learn, 2)
    assert len(watch.xs) == len(plain_watch.xs) == 6
    assert all(torch.equal(a, b) for a, b in zip(watch.xs, plain_watch.xs, strict=True))
    assert watch.draws == plain_watch.draws
    assert watch.losses_seen[0] != plain_watch.losses_seen[0]
    assert learn.model.calls == plain.model.calls
    assert float(learn.model.hidden) == float(plain.model.hidden)


def test_workers_are_not_started_for_the_batch():
    plain, plain_watch = learner(num_workers=1)
    fit(plain)
    cb = LSUVCallback()
    learn, watch = learner(cb, num_workers=1)
    fit(learn)
    assert cb.report.converged
    assert all(torch.equal(a, b) for a, b in zip(watch.xs, plain_watch.xs, strict=True))


def test_second_fit_and_skipped_epochs_are_left_alone():
    cb = LSUVCallback()
    learn, _ = learner(cb)
    fit(learn)
    first = cb.report
    fit(learn)
    assert cb.report is first
    other = LSUVCallback()
    fit(learner(other, model=learn.model)[0])
    assert other.report is None
    forced = LSUVCallback(force=True)
    fit(learner(forced, model=learn.model)[0])
    assert forced.report is not None
    skipping = LSUVCallback()
    learn, _ = learner(skipping)
    fit(learn, 2, start_epoch=1)
    fit(learn)
    assert skipping.report is None


def test_batches_of_fastais_tensor_types_are_taken_as_the_fit_takes_them():
    class Typed(Net):
        def forward(self, x):
            assert type(x) is torch.Tensor  # fastai casts its own types before the model sees them
            return super().forward(x)

    cb = LSUVCallback()
    fit(learner(cb, model=Typed(), after_batch=lambda b: (TensorImage(b[0]), b[1]))[0])
    assert cb.report.converged


def test_named_batch_and_arguments_of_lsuv_are_used():
    items = Items()
    cb = LSUVCallback(
        batch=(items.x[:7], items.y[:7]), verify=False, std=0.5, forward=lambda model, batch: model(*batch) * 1
    )
    learn, _ = learner(cb, items=items)
    fit(learn)
    assert (cb.report.passes, cb.report.std) == (1, 0.5)
    with pytest.raises(TypeError, match="LSUVCallback has no argument 'tolerance'; did you mean 'tol'"):
        LSUVCallback(tolerance=0.1)


def test_signature_shows_the_arguments_of_lsuv_with_their_defaults():
    assert arguments(LSUVCallback) == of_a_callback(lsuv_, logs=True)


def test_failure_leaves_the_learner_as_it_was():
    def broken(model, batch):
        model(*batch)
        raise RuntimeError("no such thing")

    learn, _ = learner(LSUVCallback(forward=broken))
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="no such thing"):
        fit(learn)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    assert (learn.model.calls, float(learn.model.hidden)) == ([], 0)


# Once, before the first real step; what is not done is said


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.layers[1] = nn.Sequential(nn.LayerNorm(32), nn.ReLU())


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def said(capsys):
    return lambda: [line for line in capsys.readouterr().out.splitlines() if line.startswith("LSUV")]


def find(learn):
    import fastai.callback.schedule  # noqa: F401 - adds lr_find to the Learner

    torch.manual_seed(5)
    with learn.no_bar(), learn.no_logging():
        return learn.lr_find(num_it=20, show_plot=False)


def test_trial_initialises_and_the_fit_behind_it_starts_there(said, tmp_path):
    cb = LSUVCallback(recipe="paper")
    learn, _ = learner(cb, lr=0.0)
    learn.path = tmp_path
    find(learn)
    assert cb.report.converged
    found = weights(learn.model)
    fit(learn)
    assert same(found, weights(learn.model))
    assert [line[:16] for line in said()] == ["LSUV: 3 of 3 lay", "LSUV: left alone"]


@pytest.mark.parametrize("with_opt", [True, False])
@pytest.mark.parametrize("kind", [Net, Normed])
def test_loaded_weights_are_left_alone(kind, with_opt, said, tmp_path):
    learn, _ = learner(model=kind())
    learn.path = tmp_path
    fit(learn)
    learn.save("trained", with_opt=with_opt)
    cb = LSUVCallback()
    again, _ = learner(cb, model=kind(), lr=0.0)
    again.path = tmp_path
    again.load("trained", with_opt=with_opt)
    before = weights(again.model)
    fit(again)
    assert same(before, weights(again.model))
    assert cb.report is None
    assert said()[0].startswith("LSUV: left alone: this model is trained, it seems (its weights were loaded)")
    assert not again.model._load_state_dict_post_hooks


def test_state_dict_of_a_net_with_norms_is_left_alone(said):
    trained, _ = learner(model=Normed())
    fit(trained, 3)
    model = Normed()
    model.load_state_dict(trained.model.state_dict())
    before = weights(model)
    fit(learner(LSUVCallback(), model=model, lr=0.0)[0])
    assert same(before, weights(model))
    assert "'layers.1.0' (LayerNorm) has scales that differ" in said()[0]


def test_fit_that_went_before_without_the_callback_is_seen_by_its_optimizer(said):
    learn, _ = learner()
    fit(learn)
    before = weights(learn.model)
    fit(learn, cbs=LSUVCallback(), lr=0.0)
    assert same(before, weights(learn.model))
    assert "its optimizer has taken steps" in said()[0]


def test_second_fit_other_arguments_and_a_resumed_fit_are_left_alone_in_one_line_each(said):
    cb = LSUVCallback(recipe="paper")
    learn, _ = learner(cb)
    fit(learn)
    fit(learn)
    other = LSUVCallback(recipe="paper", std=0.5)
    fit(learner(other, model=learn.model)[0])
    first, second, third = said()
    assert first.startswith("LSUV: 3 of 3 layers")
    assert second.startswith(
        "LSUV: left alone: LSUVCallback(recipe='paper') initialised this model, whose weights were trained"
    )
    assert third.endswith("LSUVCallback(force=True, recipe='paper', std=0.5) does it anew.")
    resumed, _ = learner(LSUVCallback(recipe="paper", force=True))
    fit(resumed, 2, start_epoch=1)
    assert said() == [
        "LSUV: left alone: this run resumes from a checkpoint, whose weights are trained; begin a run without one to initialise."
    ]


def test_two_callbacks_for_different_layers_both_run(said):
    hidden, head = LSUVCallback(layers=["layers.0", "layers.3"]), LSUVCallback(layers=["layers.5"], std=0.1)
    learn, _ = learner(hidden, head)
    fit(learn)
    scaled = [[row.name for row in cb.report.layers if row.status == "scaled"] for cb in (hidden, head)]
    assert scaled == [["layers.0", "layers.3"], ["layers.5"]]
    assert len(said()) == 2


@pytest.mark.parametrize("what", ["validate", "get_preds", "summary"])
def test_validation_and_prediction_run_nothing(what, said):
    import fastai.callback.hook  # noqa: F401 - adds summary to the Learner

    cb = LSUVCallback()
    learn, _ = learner(cb)
    before = weights(learn.model)
    with learn.no_bar(), learn.no_logging():
        getattr(learn, what)()
    assert same(before, weights(learn.model))
    assert (cb.report, said()) == (None, [])
    fit(learn)
    assert cb.report.converged
