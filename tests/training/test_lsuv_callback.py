"""LSUVCallback: it runs once, on the batch that training would see, and the fit is otherwise the one without it."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from signatures import arguments, of_a_callback
from tiny import learner, net, noise, recorder, seed_all
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lsuvcb.callback.past import past_of
from lsuvcb.engine.errors import LSUVError
from lsuvcb.engine.lsuv import lsuv_
from lsuvcb.loaders import TensorLoader
from lsuvcb.training.callbacks import BatchTransformCB, DeviceCB
from lsuvcb.training.events import BATCH_EVENTS, EVENTS, Callback, CancelBatchException, CancelEpochException
from lsuvcb.training.learner import Learner
from lsuvcb.training.lsuv_callback import LSUVCallback
from lsuvcb.training.metrics import MetricsCB
from lsuvcb.training.train_learner import TrainLearner


class Rows(Dataset):
    """Rows with noise from numpy's global generator, as many augmentations draw it."""

    def __init__(self, n=48):
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(n, 5, generator=g), torch.randn(n, 2, generator=g)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 0.1 * noise(), self.y[i]


def relu_net(seed=0, depth=6):
    torch.manual_seed(seed)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(5, 5), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(5, 2))


def rows_dls(**kw):
    rows = Rows()
    return SimpleNamespace(train=DataLoader(rows, 16, shuffle=True, **kw), valid=[(rows.x[:16], rows.y[:16])])


def stds(model, x):
    """The test's own measurement: the std of every Linear's output."""
    found, hooks = [], []
    for m in model.modules():
        if isinstance(m, nn.Linear):
            hooks.append(m.register_forward_hook(lambda m, i, o: found.append(o.std(correction=0).item())))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


# It does its work


def test_fit_with_the_callback_starts_from_unit_std_on_the_first_training_batch(capsys):
    seen = {}

    class Look(Callback):
        order = LSUVCallback.order + 1

        def before_fit(self, learn):
            seen["model"] = copy.deepcopy(learn.model)

        def before_batch(self, learn):
            seen.setdefault("batch", learn.batch)

    cb = LSUVCallback(recipe="paper")
    learn = learner([cb], rows_dls(), relu_net())
    seed_all(3)
    learn.fit(1, cbs=Look())
    assert stds(seen["model"], seen["batch"][0]) == pytest.approx([1.0] * 7, abs=1e-3)
    assert cb.report.converged
    line_ = capsys.readouterr().out
    assert line_ == str(cb.report).splitlines()[0] + "\n"
    assert "7 of 7 layers" in line_


def test_learner_taught_by_a_subclass_is_initialised_too(capsys):
    cb = LSUVCallback()
    TrainLearner(relu_net(), rows_dls(), cbs=cb).fit(1)
    assert len(cb.report.layers) == 7


# The fit is otherwise the one without it


def _fit(cbs, make_dls, tfm):
    seed_all(1)
    model = net()
    torch.manual_seed(2)
    learn = learner([*cbs, *tfm(), MetricsCB()], make_dls(), model)
    learn.fit(2)
    return model, learn.history


def _own_generator():
    return rows_dls(generator=torch.Generator().manual_seed(11))


def _in_memory():
    rows = Rows()
    return SimpleNamespace(
        train=TensorLoader(rows.x, rows.y, bs=16, shuffle=True, generator=torch.Generator().manual_seed(5)),
        valid=TensorLoader(rows.x, rows.y, bs=16),
    )


LOADERS = {
    "no workers": rows_dls,
    "own generator": _own_generator,
    "in memory": _in_memory,
    "list": lambda: SimpleNamespace(train=[(Rows().x, Rows().y)] * 3, valid=[(Rows().x, Rows().y)]),
    "two workers": lambda: rows_dls(num_workers=2),
    "persistent workers": lambda: rows_dls(num_workers=2, persistent_workers=True),
    "own generator, workers": lambda: rows_dls(num_workers=2, generator=torch.Generator().manual_seed(11)),
}


def _jitter(batch):
    return batch[0] * (1 + 0.1 * noise()), batch[1]


@pytest.mark.parametrize("tfm", [list, lambda: [BatchTransformCB(_jitter)]], ids=["plain", "transform"])
@pytest.mark.parametrize("name", LOADERS)
def test_fit_with_a_callback_that_changes_nothing_equals_a_fit_without_it(name, tfm, capsys):
    plain, plain_history = _fit([], LOADERS[name], tfm)
    cb = LSUVCallback(recipe="paper", tol=1e9, orthonormal=False)
    model, history = _fit([cb], LOADERS[name], tfm)
    assert [r.status for r in cb.report.layers] == ["unchanged"] * 3
    assert history == plain_history
    wrong = [k for k, v in model.state_dict().items() if not torch.equal(v, plain.state_dict()[k])]
    assert wrong == []


def test_fits_of_two_seeds_differ_so_that_the_comparison_can_fail(capsys):
    _, one = _fit([], rows_dls, list)
    torch.manual_seed(99)
    model = net(seed=5)
    learn = learner([MetricsCB()], rows_dls(), model)
    learn.fit(2)
    assert learn.history != one


def test_orthonormal_draw_leaves_the_generators_to_the_fit(capsys):
    class Targets(Callback):
        def __init__(self):
            self.seen = []

        def after_predict(self, learn):
            self.seen.append(learn.batch[1].sum().item())

    plain, behind = Targets(), Targets()
    for cbs in ([plain], [LSUVCallback(), behind]):
        model = relu_net()
        seed_all(1)
        learner(cbs, rows_dls(), model).fit(1)
    assert len(plain.seen) == 4
    assert plain.seen == behind.seen


def test_generator_of_its_own_advances_and_decides_the_weights(capsys):
    weights = []
    for seed in (1, 1, 2):
        model = relu_net()
        seed_all(0)
        learner([LSUVCallback(generator=torch.Generator().manual_seed(seed))], rows_dls(), model).fit(1, valid=False)
        weights.append(model[0].weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_learner_is_restored_before_the_next_callback_sees_it(capsys):
    names = ("batch", "preds", "loss", "dl", "epoch", "iter")

    class Look(Callback):
        order = LSUVCallback.order + 1

        def before_fit(self, learn):
            self.seen = {name: vars(learn)[name] for name in names if name in vars(learn)}
            self.modes = [m.training for m in learn.model.modules()]
            self.buffers = {k: v.clone() for k, v in learn.model.named_buffers()}

    look, model = Look(), net().eval()
    model[3].train()
    modes = [m.training for m in model.modules()]
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    learn = learner([LSUVCallback(), look], rows_dls(), model)
    learn.fit(1)
    assert look.seen == {}
    assert look.modes == modes
    assert all(torch.equal(v, buffers[k]) for k, v in look.buffers.items())
    learn.cbs[1] = LSUVCallback(force=True, orthonormal=False)
    learn.batch = learn.preds = "of the fit before"
    learn.fit(1)
    assert look.seen["batch"] == look.seen["preds"] == "of the fit before"


def test_events_of_one_batch_are_fired_once_for_a_callback_that_hears_before_batch(capsys):
    fired = []

    def also(event, learn):
        fired.append((event, learn.training))

    class Ends(Callback):  # opens nothing, and hears nothing
        def after_batch(self, learn):
            fired.append("ends")

    class Stop(Callback):
        order = LSUVCallback.order + 1

        def before_fit(self, learn):
            fired.append("stop")

    learner([LSUVCallback(), recorder(also=also), Ends(), Stop()], rows_dls(), relu_net().eval()).fit(1)
    assert fired[: fired.index("stop")] == [("before_fit", False), *((event, True) for event in BATCH_EVENTS)]


def test_batch_passes_through_the_transforms_of_training(capsys):
    cb = LSUVCallback()
    tfm = BatchTransformCB(lambda b: (b[0] * 0 + torch.arange(5.0), b[1]), on_val=False)
    learner([DeviceCB("cpu"), cb, tfm], rows_dls(), relu_net()).fit(1)
    assert cb.report.input_mean == pytest.approx(2.0)


def test_batch_that_is_named_is_used_as_it_is_and_stays_so(capsys):
    x = 3 + torch.randn(64, 5)
    kept = x.clone()

    def spoil(batch):
        batch[0].mul_(2)
        return batch

    cb = LSUVCallback(batch=(x, torch.zeros(64, 2)))
    learner([cb, BatchTransformCB(spoil)], rows_dls(), relu_net()).fit(1, valid=False)
    assert cb.report.input_mean == pytest.approx(2 * x.mean().item(), rel=1e-5)
    assert torch.equal(x, kept)


def test_batch_that_is_one_tensor_is_the_inputs(capsys):
    x, model = torch.randn(64, 5), relu_net()
    learner([LSUVCallback(batch=x, recipe="paper")], rows_dls(), model).fit(1, valid=False, lr=0.0)
    assert stds(model, x) == pytest.approx([1.0] * 7, abs=1e-3)


def test_forward_of_the_user_wins_and_is_given_the_whole_batch(capsys):
    seen = []

    def forward(model, batch):
        seen.append(len(batch))
        return model(batch[0][:8])

    learner([LSUVCallback(forward=forward, verify=False)], rows_dls(), relu_net()).fit(1)
    assert seen == [2]


# Once per model


def _weights(model):
    return [p.detach().clone() for p in model.parameters()]


def _same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _passes(cb, learn, **kw):
    """Does a fit that does not move the weights (lr 0) change them, and does the callback run?"""
    before, cb.report = _weights(learn.model), None
    learn.fit(1, valid=False, lr=0.0, **kw)
    ran = cb.report is not None
    assert ran == (not _same(before, _weights(learn.model)))
    return ran


def test_model_is_initialised_once_by_whatever_callback_and_learner(capsys):
    cb, model = LSUVCallback(), relu_net()
    learn = learner([cb], rows_dls(), model)
    assert not past_of(model).initialised
    assert _passes(cb, learn)
    assert past_of(model).initialised
    assert not _passes(cb, learn)
    assert not _passes(cb, Learner(model, rows_dls(), cbs=learn.cbs))
    other = LSUVCallback(std=2.0)
    assert not _passes(other, learner([other], rows_dls(), model))
    assert not _passes(cb, learner([cb], rows_dls(), copy.deepcopy(model)))
    lines = capsys.readouterr().out.splitlines()
    assert [line[:17] for line in lines] == ["LSUV: 6 of 6 laye", *["LSUV: left alone:"] * 4]


def test_same_callback_runs_on_another_model(capsys):
    cb = LSUVCallback()
    assert _passes(cb, learner([cb], rows_dls(), relu_net(0)))
    assert _passes(cb, learner([cb], rows_dls(), relu_net(1)))


def test_force_runs_again(capsys):
    cb, model = LSUVCallback(force=True), relu_net()
    learn = learner([cb], rows_dls(), model)
    assert _passes(cb, learn)
    assert _passes(cb, learn)


@pytest.mark.parametrize("kw", [{"train": False}, {"n_epochs": 0}])
def test_fit_that_does_not_train_does_not_run_it(kw, capsys):
    cb, model = LSUVCallback(), relu_net()
    before = _weights(model)
    learner([cb], rows_dls(), model).fit(**kw)
    assert cb.report is None
    assert not past_of(model).initialised
    assert _same(before, _weights(model))


def test_fit_that_fails_in_lsuv_changes_nothing_and_may_be_tried_again(capsys):
    model = relu_net()
    before = _weights(model)
    bad = LSUVCallback(batch=torch.randn(64, 5), forward=lambda model, batch: model(batch[0]) + torch.ones(3))
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="must match the size") as error:
        learner([bad], rows_dls(), model).fit(1)
    assert "raised in LSUVCallback.before_fit" in error.value.__notes__
    assert _same(before, _weights(model))
    assert torch.equal(state, torch.get_rng_state())
    assert not past_of(model).initialised
    cb = LSUVCallback()
    assert _passes(cb, learner([cb], rows_dls(), model))


# Its arguments


def test_signature_shows_the_arguments_of_lsuv_with_their_defaults():
    assert arguments(LSUVCallback) == of_a_callback(lsuv_)


def test_arguments_given_as_the_defaults_that_the_signature_shows_are_as_if_not_given(capsys):
    cb = LSUVCallback(**dict(arguments(LSUVCallback)))
    assert repr(cb) == "LSUVCallback()"
    learner([cb], rows_dls(), relu_net()).fit(
        1
    )  # its `forward=None` is not taken for lsuv_'s own, which has no use for targets
    assert cb.report is not None


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"tolerance": 1}, TypeError, r"^LSUVCallback has no argument 'tolerance'; did you mean 'tol'\?$"),
        ({"xyz": 1}, TypeError, r"^LSUVCallback has no argument 'xyz'; it takes recipe, measure, std, .*, mask\.$"),
        ({"model": None}, TypeError, r"no argument 'model'"),
        ({"tol": -0.1}, ValueError, r"`tol` must be > 0.*got -0\.1"),
        ({"std": 0}, ValueError, r"`std` must be > 0.*got 0"),
        ({"measure": "input"}, ValueError, r"`measure` must be 'layer' or 'activation', got 'input'"),
        ({"max_iters": 0}, ValueError, r"`max_iters` must be >= 1, got 0"),
        ({"forward": 3}, TypeError, r"`forward` must be a function"),
        ({"layers": 3}, TypeError, r"`layers` must be a module type"),
        ({"layers": []}, ValueError, r"`layers` is an empty list"),
    ],
)
def test_bad_argument_raises_where_the_callback_is_made(arguments, error, text):
    with pytest.raises(error, match=text):
        LSUVCallback(**arguments)


def test_layers_are_looked_up_in_the_model_that_is_there(capsys):
    cb = LSUVCallback(layers=["0", "4"])
    learner([cb], rows_dls(), relu_net()).fit(1)
    assert [r.name for r in cb.report.layers if r.status != "left alone"] == ["0", "4"]


@pytest.mark.parametrize("cancel", [CancelBatchException, CancelEpochException])
def test_batches_that_a_callback_cancels_one_and_all_raise_with_advice(cancel, capsys):
    class Skip(Callback):
        def before_batch(self, learn):
            raise cancel

    with pytest.raises(LSUVError, match=r"a callback cancelled each one in before_batch.*LSUVCallback\(batch=\.\.\.\)"):
        learner([LSUVCallback(), Skip()], rows_dls(), relu_net()).fit(1)


def test_batch_that_a_callback_cancels_leaves_lsuv_the_next(capsys):
    class SkipFirst(Callback):
        def before_batch(self, learn):
            if learn.iter == 0:
                raise CancelBatchException

    batches = [(torch.randn(64, 5) + i, torch.zeros(64, 2)) for i in range(3)]
    cb = LSUVCallback()
    learner([cb, SkipFirst()], SimpleNamespace(train=batches), relu_net()).fit(1, valid=False)
    assert cb.report.input_mean == pytest.approx(batches[1][0].mean().item(), rel=1e-5)


class Empty(IterableDataset):
    def __iter__(self):
        return iter(())


def test_loader_that_turns_out_empty_raises_and_says_so(capsys):
    dls = SimpleNamespace(train=DataLoader(Empty(), 4), valid=None)
    with pytest.raises(ValueError, match=r"`dls.train` must give at least one batch, got an empty DataLoader"):
        learner([LSUVCallback()], dls, relu_net()).fit(1, valid=False)


def test_repr_shows_what_was_given_and_pickle_keeps_it(capsys):
    cb = LSUVCallback(tol=0.1, mean=None, force=True, batch=torch.randn(64, 5))
    assert repr(cb) == "LSUVCallback(batch=..., force=True, tol=0.1, mean=None)"
    learner([cb], rows_dls(), relu_net()).fit(1)
    twin = pickle.loads(pickle.dumps(cb))
    assert repr(twin) == repr(cb)
    assert str(twin.report) == str(cb.report)


def test_callback_hears_one_event():
    assert [event for event in EVENTS if hasattr(LSUVCallback, event)] == ["before_fit"]


# On a GPU


@pytest.mark.gpu
def test_on_a_gpu_the_model_and_the_batch_are_there_and_results_are_the_cpus(capsys):
    torch.backends.cuda.matmul.allow_tf32 = False
    models = {}
    for device in ("cpu", "cuda"):
        devices = []

        def forward(model, batch, devices=devices):
            devices.append((next(model.parameters()).device.type, batch[0].device.type))
            return model(batch[0])

        models[device] = relu_net()
        seed_all(0)
        cbs = [LSUVCallback(orthonormal=False, forward=forward), DeviceCB(device)]
        learner(cbs, rows_dls(), models[device]).fit(1, valid=False, lr=0.0)
        assert set(devices) == {(device, device)}
    for a, b in zip(models["cpu"].parameters(), models["cuda"].parameters(), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_no_activation_is_copied_to_the_host(capsys):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Copies(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            source = args[0] if args and isinstance(args[0], torch.Tensor) else None
            if source is not None and source.is_cuda and isinstance(out, torch.Tensor) and not out.is_cuda:
                self.largest = max(self.largest, out.numel())
            return out

    dls = SimpleNamespace(train=[(torch.randn(512, 5), torch.randn(512, 2))], valid=None)
    with Copies() as copies:
        learner([LSUVCallback(), DeviceCB("cuda")], dls, relu_net()).fit(1, valid=False)
    assert copies.largest <= 64
