"""LSUVCallback beside what fastai has: two ranks, export, frozen groups, callbacks that prepare batches, one fit only."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from programs import run
from required import need_package
from torch import nn

from lsuvcb import lsuv_

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # at import, fastai's own deprecations
    need_package("fastai")
    import fastai.callback.schedule  # noqa: F401 - adds fine_tune to the Learner
    import fastai_run
    from fastai.callback.core import Callback
    from fastai.callback.hook import HookCallback
    from fastai.callback.mixup import CutMix, MixUp
    from fastai.callback.training import BnFreeze
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner, before_batch_cb, load_learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.torch_core import params

    from lsuvcb.integrations.fastai import LSUVCallback

pytestmark = pytest.mark.filterwarnings("ignore")


class Images:
    """Small images to classify."""

    def __init__(self, n=64):
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(n, 1, 8, 8, generator=g), torch.randint(0, 4, (n,), generator=g)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]

    def new_empty(self):  # what `Learner.export` keeps of a data set
        return Images(0)


def net():
    torch.manual_seed(1)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh())
    return nn.Sequential(body, nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)))


class Watch(Callback):
    """The inputs that the model got in training, and its weights when the first came."""

    order = 100

    def __init__(self):
        self.inputs, self.start = [], None

    def before_batch(self):
        if self.training:
            self.inputs.append(self.xb[0].clone())
            self.start = weights(self.model) if self.start is None else self.start


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def loaders(train=None):
    random.seed(3)
    train = DataLoader(Images(), bs=32, shuffle=True, num_workers=0) if train is None else train
    return DataLoaders(train, DataLoader(Images(), bs=32, num_workers=0), device=torch.device("cpu"))


def learner(*cbs, model=None, lr=0.1, train=None, **options):
    watch = Watch()
    learn = Learner(
        loaders(train), net() if model is None else model, CrossEntropyLossFlat(), lr=lr, cbs=[*cbs, watch], **options
    )
    return learn, watch


def quietly(learn, do, seed=5):
    torch.manual_seed(seed)
    with learn.no_bar(), learn.no_logging():
        do()


def fit(learn, epochs=1, **options):
    quietly(learn, lambda: learn.fit(epochs, **options))


@pytest.fixture
def said(capsys):
    return lambda: [line for line in capsys.readouterr().out.splitlines() if line.startswith("LSUV")]


# Equal, bit for bit


@pytest.mark.parametrize("recipe", ["balanced", "paper", "course"])
def test_weights_are_bit_for_bit_those_of_lsuv(recipe):
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    learn, watch = learner(LSUVCallback(recipe=recipe, generator=generators[0]))
    fit(learn)
    by_hand = net()
    lsuv_(by_hand, watch.inputs[0], recipe=recipe, generator=generators[1])
    assert same(watch.start, weights(by_hand))
    assert not same(watch.start, weights(net()))


@pytest.mark.parametrize("why", ["all layers are left", "the model is done"])
def test_fit_with_a_callback_that_changes_nothing_is_bit_for_bit_one_without(why):
    def start():
        model = net()
        if why == "the model is done":
            fit(learner(LSUVCallback(), model=model, lr=0.0)[0])
        return model

    plain, plain_watch = learner(MixUp(), model=start())
    fit(plain, 2)
    cb = LSUVCallback(std={"*": "leave"}, orthonormal=False) if why == "all layers are left" else LSUVCallback()
    learn, watch = learner(MixUp(), cb, model=start())
    fit(learn, 2)
    assert (cb.report is None) == (why == "the model is done")
    assert same(watch.inputs, plain_watch.inputs)
    assert same(weights(learn.model), weights(plain.model))
    assert not same(weights(learn.model), watch.start)


# Callbacks that prepare a batch


def brighter(learn, xb, yb):
    return tuple(x * 3 for x in xb), yb


PREPARING = {"MixUp": MixUp, "CutMix": CutMix, "a function": lambda: before_batch_cb(brighter)}


@pytest.mark.parametrize("kind", PREPARING)
def test_batch_is_prepared_as_the_fit_prepares_it(kind):
    learn, watch = learner(LSUVCallback(orthonormal=False), PREPARING[kind]())
    fit(learn)
    by_hand = net()
    lsuv_(by_hand, watch.inputs[0], orthonormal=False)
    assert same(watch.start, weights(by_hand))
    assert not any(torch.equal(watch.inputs[0], x) for x in plain_inputs())
    assert isinstance(learn.loss_func, CrossEntropyLossFlat)


def plain_inputs():
    learn, watch = learner()
    fit(learn)
    return watch.inputs


def test_callback_that_prepares_batches_keeps_no_trace_of_the_one_for_lsuv():
    class Count(Callback):
        def __init__(self):
            self.seen = []

        def before_batch(self):
            self.seen.append((self.training, self.iter, len(self.x), self.n_iter))

    count, cb = Count(), LSUVCallback()
    fit(learner(cb, count)[0])
    assert cb.report.converged
    assert count.seen == [(True, 0, 32, 2), (True, 1, 32, 2), (False, 0, 32, 2), (False, 1, 32, 2)]


def test_callback_that_cannot_be_copied_prepares_the_batch_itself():
    class Held(Callback):
        def __init__(self):
            self.rows = (row for row in [1.0])  # a generator cannot be copied
            self.count = 0

        def before_batch(self):
            self.count += 1
            self.learn.xb = (self.xb[0] * 2,)

    held, cb = Held(), LSUVCallback(recipe="paper")
    learn, watch = learner(cb, held)
    fit(learn)
    assert cb.report.input_std == pytest.approx(watch.inputs[0].std(correction=0).item(), rel=1e-6)
    assert held.count == 4


def test_batch_that_a_callback_cancels_is_taken_as_it_is_then():
    from fastai.callback.core import CancelBatchException

    class Skip(Callback):
        def before_batch(self):
            raise CancelBatchException

    cb = LSUVCallback()
    fit(learner(cb, Skip())[0])
    assert cb.report.converged


def test_hooks_for_some_batches_are_not_there_for_the_one_of_lsuv():
    class Hooked(HookCallback):
        calls = 0

        def hook(self, module, inputs, output):
            Hooked.calls += 1

    hooked = Hooked(every=1)
    learn, _ = learner(LSUVCallback(), hooked)
    fit(learn, 1)
    assert Hooked.calls == 2 * 4  # two batches, four layers
    assert not any(module._forward_hooks for module in learn.model.modules())


def test_norms_that_bn_freeze_keeps_are_in_eval_mode_for_the_batch():
    model = net()
    model[0].insert(2, nn.BatchNorm1d(32))
    model[0][2].requires_grad_(False)
    modes = []
    model[0][2].register_forward_hook(lambda module, args, y: modes.append(module.training))
    cb = LSUVCallback(force=True)
    fit(learner(cb, BnFreeze(), model=model, train_bn=False)[0])
    assert cb.report.converged
    assert len(modes) > cb.report.passes
    assert not any(modes)


def test_loader_of_torch_gives_the_batch_that_the_fit_sees():
    def train():
        return torch.utils.data.DataLoader(Images(), batch_size=32, shuffle=True)

    plain, plain_watch = learner(train=train())
    fit(plain)
    cb = LSUVCallback(recipe="paper")
    learn, watch = learner(cb, train=train())
    fit(learn)
    assert cb.report.input_std == pytest.approx(watch.inputs[0].std(correction=0).item(), rel=1e-6)
    assert same(watch.inputs, plain_watch.inputs)


def test_loader_without_a_batch_is_an_error_that_names_the_way_out():
    learn, _ = learner(LSUVCallback(), train=DataLoader(Images(0), bs=32, num_workers=0))
    with pytest.raises(
        ValueError, match=r"must have a batch to initialise on, got none; name one: LSUVCallback\(batch="
    ):
        fit(learn)


# Frozen groups, one fit only, files


def body_and_head(model):
    return [params(model[0]), params(model[1])]


def test_fine_tune_names_the_frozen_body_and_its_second_fit_is_left_alone(said):
    cb = LSUVCallback(recipe="paper")
    learn, watch = learner(cb, splitter=body_and_head)
    quietly(learn, lambda: learn.fine_tune(1, freeze_epochs=1))
    found = {row.name: (row.status, row.reason) for row in cb.report.layers}
    frozen = ("left alone", "frozen (requires_grad=False)")
    assert found == {"0.1": frozen, "0.3": frozen, "1.0": ("scaled", ""), "1.2": ("scaled", "")}
    assert same(watch.start[:4], weights(net())[:4])
    assert not same(weights(learn.model)[:4], weights(net())[:4])  # the second fit trained them
    first, second = said()
    assert first.startswith("LSUV: 2 of 2 layers at std 1")
    assert second.startswith(
        "LSUV: left alone: LSUVCallback(recipe='paper') initialised this model, whose weights were"
    )


def test_callback_for_one_fit_initialises_and_is_gone(said):
    learn, watch = learner()
    cb = LSUVCallback(recipe="paper")
    fit(learn, cbs=cb)
    assert cb.report.converged
    assert cb not in learn.cbs
    assert not same(watch.start, weights(net()))
    trained = weights(learn.model)
    fit(learn, lr=0.0)
    assert same(trained, weights(learn.model))
    fit(learn, lr=0.0, cbs=LSUVCallback())
    assert same(trained, weights(learn.model))
    assert [line[:16] for line in said()] == ["LSUV: 4 of 4 lay", "LSUV: left alone"]
    assert not learn.model._load_state_dict_post_hooks


@pytest.mark.parametrize("trained", [False, True])
def test_learner_that_was_exported_knows_whether_its_model_is_done(trained, said, tmp_path):
    learn, _ = learner(LSUVCallback(recipe="paper"))
    learn.path = tmp_path
    if trained:
        fit(learn)
    learn.export("learner.pkl")
    again = load_learner(tmp_path / "learner.pkl")
    assert repr(again.lsuv) == "LSUVCallback(recipe='paper')"
    assert same(weights(again.model), weights(learn.model))
    again.dls = loaders()
    said()
    fit(again, lr=0.0)
    assert same(weights(again.model), weights(learn.model)) == trained
    assert [line[:16] for line in said()] == (["LSUV: left alone"] if trained else ["LSUV: 4 of 4 lay"])
    fit(learn)  # the learner that was exported goes on
    assert learn.lsuv.report.converged


def test_weights_loaded_between_two_fits_are_left_alone(said, tmp_path):
    learn, _ = learner(LSUVCallback(recipe="paper"))
    learn.path = tmp_path
    learn.save("before")
    fit(learn)
    learn.load("before")
    fit(learn, lr=0.0)
    assert same(weights(learn.model), weights(net()))
    assert "whose weights were trained or replaced since" in said()[-1]


# Two processes


def test_ranks_of_distributed_trainer_hold_equal_weights_for_the_batch_of_both(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
    ranks, printed = run(fastai_run, tmp_path, *launcher)
    assert printed.count("LSUV: 2 of 2 layers at std 1") == 1
    firsts = [rank["seen"][0] for rank in ranks]
    assert not torch.equal(*firsts)
    for rank in ranks:
        assert torch.equal(rank["seen"], rank["plain"])
    alone = fastai_run.net()
    lsuv_(alone, torch.cat(firsts), recipe="paper", orthonormal=False)
    for name, values in alone.state_dict().items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
        assert torch.allclose(ranks[0]["weights"][name], values, rtol=1e-4, atol=1e-6)
