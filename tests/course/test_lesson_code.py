"""A lesson's own cells run as they stand behind `from lsuvcb.course import *`; nothing else is changed for us.

Each test executes its cells in a namespace of its own, in order, as a notebook does, and then looks into it.
"""

from __future__ import annotations

import pytest
import torch
from required import need_package

import lsuvcb.course

IMPORTS = """
from functools import partial
from operator import attrgetter
import math, random

import matplotlib.pyplot as plt
import numpy as np
import torch, torch.nn.functional as F, torchvision.transforms.functional as TF
import fastcore.all as fc
from torch import nn, optim, tensor
from torch.optim import lr_scheduler
from torch.nn import init
from torcheval.metrics import MulticlassAccuracy, Mean
from fastcore.test import test_close

from lsuvcb.course import *
"""

# A task that a small net learns in a few epochs: which quarter of a noisy 28x28 picture is bright.
PICTURES = """
set_seed(42)
def quarters(n):
    y = torch.randint(0, 4, (n,))
    x = 0.3 * torch.rand(n, 1, 28, 28)
    for i, k in enumerate(y.tolist()):
        x[i, 0, 14 * (k // 2):14 * (k // 2) + 14, 14 * (k % 2):14 * (k % 2) + 14] += 0.6
    return x, y

class InMemory(torch.utils.data.Dataset):
    def __init__(self, n): self.x, self.y = quarters(n)
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.y[i]

bs = 64
trn, val = InMemory(640), InMemory(128)
dls = DataLoaders(torch.utils.data.DataLoader(trn, bs, shuffle=True, collate_fn=collate_device),
                  torch.utils.data.DataLoader(val, 2*bs, collate_fn=collate_device))
xb, yb = next(iter(dls.train))
"""

NAMES = """set_seed def_device to_device to_cpu collate_device inplace collate_dict DataLoaders show_image show_images
get_grid subplots conv get_model init_weights GeneralRelu plot_func Hook Hooks HooksCallback append_stats get_hist get_min
ActivationStats Callback run_cbs with_cbs CancelFitException CancelBatchException CancelEpochException TrainCB DeviceCB
MetricsCB ProgressCB SingleBatchCB BatchTransformCB LRFinderCB lr_find Learner TrainLearner MomentumLearner lsuv_init
clean_ipython_hist clean_tb clean_mem BaseSchedCB BatchSchedCB EpochSchedCB HasLearnCB RecorderCB find_modules find_mods
is_lin_layer append_stat lsuv_append_stat lsuv_module get_batch init_cnn view_tfm normalize normalize_to stats gain
kaiming2""".split()


def lesson(*cells: str) -> dict:
    """The names of a notebook that has run these cells behind the imports."""
    names: dict = {"__name__": "lesson"}
    for i, cell in enumerate((IMPORTS, *cells)):
        exec(compile(cell, f"<cell {i}>", "exec"), names)
    return names


def test_course_star_import_gives_every_name_of_the_lessons():
    names: dict = {}
    exec("from lsuvcb.course import *", names)
    assert set(NAMES) <= set(lsuvcb.course.__all__)
    assert all(names[name] is getattr(lsuvcb.course, name) for name in NAMES)
    assert len(NAMES) == len(set(NAMES)) == 64


def test_course_star_import_gives_nothing_that_hides_a_lessons_own_name():
    lessons_own = {
        "torch",
        "nn",
        "F",
        "fc",
        "plt",
        "np",
        "math",
        "random",
        "optim",
        "init",
        "learn",
        "model",
        "xb",
        "yb",
    }
    assert not lessons_own & set(lsuvcb.course.__all__)
    assert not [name for name in lsuvcb.course.__all__ if type(getattr(lsuvcb.course, name)) is type(torch)]


def test_lesson_that_writes_its_own_loop_with_run_cbs_and_with_cbs_trains_and_cancels():
    names = lesson(
        PICTURES,
        """
class CountBatches(Callback):
    order = 1
    def before_fit(self, learn): self.seen = 0
    def after_batch(self, learn): self.seen += 1
    def after_fit(self, learn): self.said = f'{self.seen} batches'

class StopEarly(Callback):
    def __init__(self, most): self.most = most
    def before_batch(self, learn):
        if learn.training and learn.iter >= self.most: raise CancelEpochException()
""",
        """
class TinyLearner():
    def __init__(self, model, dls, loss_func, lr, cbs, opt_func=optim.SGD): fc.store_attr()

    @with_cbs('batch')
    def _one_batch(self):
        self.preds = self.model(self.batch[0])
        self.loss = self.loss_func(self.preds, self.batch[1])
        if self.training:
            self.loss.backward()
            self.opt.step()
            self.opt.zero_grad()

    @with_cbs('epoch')
    def _one_epoch(self):
        for self.iter, self.batch in enumerate(self.dl): self._one_batch()

    def one_epoch(self, training):
        self.model.train(training)
        self.training = training
        self.dl = self.dls.train if training else self.dls.valid
        self._one_epoch()

    @with_cbs('fit')
    def _fit(self):
        for self.epoch in self.epochs:
            self.one_epoch(True)
            with torch.no_grad(): self.one_epoch(False)

    def fit(self, n):
        self.epochs = range(n)
        self.opt = self.opt_func(self.model.parameters(), self.lr)
        self._fit()

    def callback(self, method_nm): run_cbs(self.cbs, method_nm, self)
""",
        """
def mlp(): return nn.Sequential(nn.Flatten(), nn.Linear(28*28, 32), nn.ReLU(), nn.Linear(32, 4))
count, short = CountBatches(), CountBatches()
full = TinyLearner(mlp(), dls, F.cross_entropy, lr=0.2, cbs=[count])
full.fit(3)
cut = TinyLearner(mlp(), dls, F.cross_entropy, lr=0.2, cbs=[short, StopEarly(4)])
cut.fit(1)
right = (full.model(val.x.to(def_device)).argmax(1) == val.y.to(def_device)).float().mean().item()
""",
    )
    assert names["count"].said == "33 batches"  # 3 epochs of 10 training batches and 1 to validate on
    assert names["short"].said == "5 batches"
    assert names["right"] > 0.8


def test_lesson_that_subclasses_the_learner_and_wraps_a_step_with_with_cbs_trains():
    names = lesson(
        PICTURES,
        """
class ScaledLearner(TrainLearner):
    def backward(self):
        (self.loss * 2).backward()
    def zero_grad(self):
        with torch.no_grad():
            for p in self.model.parameters(): p.grad *= 0.5

    @with_cbs('batch')
    def peek(self, batch):
        self.batch = batch
        self.predict()

class Log(Callback):
    def __init__(self): self.names = []
    def before_batch(self, learn): self.names.append('before')
    def after_batch(self, learn): self.names.append('after')
    def cleanup_batch(self, learn): self.names.append('cleanup')

set_seed(1)
log = Log()
model = nn.Sequential(nn.Flatten(), nn.Linear(28*28, 4))
learn = ScaledLearner(model, dls, F.cross_entropy, lr=0.02, cbs=[DeviceCB(), MetricsCB(accuracy=MulticlassAccuracy()), log])
learn.fit(2)
log.names.clear()
learn.peek((xb, yb))
""",
    )
    evals = [row["accuracy"] for row in names["learn"].history if row["train"] == "eval"]
    assert evals[-1] > 0.8
    assert names["log"].names == ["before", "after", "cleanup"]
    assert names["learn"].preds.shape == (64, 4)


def test_lesson_whose_metrics_callback_has_a_log_of_its_own_keeps_it_beside_a_progress_bar():
    names = lesson(
        PICTURES,
        """
class TableCB(MetricsCB):
    def __init__(self, *ms, **metrics):
        super().__init__(*ms, **metrics)
        self.rows = []
    def _log(self, d): self.rows.append(d)

table = TableCB(accuracy=MulticlassAccuracy())
act_gr = partial(GeneralRelu, leak=0.1, sub=0.4)
set_seed(42)
model = get_model(act_gr, nfs=[1, 4, 8, 8, 8], n_out=4).apply(partial(init_weights, leaky=0.1))
learn = MomentumLearner(model, dls, F.cross_entropy, lr=0.05, cbs=[DeviceCB(), table, ProgressCB(plot=True)])
learn.fit(3)
accuracies = [float(row['accuracy']) for row in table.rows if row['train'] == 'eval']
""",
    )
    assert [(row["epoch"], row["train"]) for row in names["table"].rows] == [
        (epoch, kind) for epoch in range(3) for kind in ("train", "eval")
    ]
    assert names["accuracies"][-1] > max(0.8, names["accuracies"][0] - 0.1)


DATASETDICT = """
from datasets import Dataset, DatasetDict
from PIL import Image

set_seed(42)
def pictures(n):
    ys = [random.randrange(4) for _ in range(n)]
    ims = [np.full((12, 12), 20 + 60 * y, dtype=np.uint8) for y in ys]
    return Dataset.from_dict({'image': [Image.fromarray(im) for im in ims], 'label': ys})

dd = DatasetDict(train=pictures(200), test=pictures(60))
x, y = dd['train'].column_names

@inplace
def transformi(b): b[x] = [TF.to_tensor(o) for o in b[x]]

tds = dd.with_transform(transformi)
dls = DataLoaders.from_dd(tds, 32, num_workers=WORKERS)
xb, yb = next(iter(dls.train))
ds = dls.train.dataset
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_lesson_that_reads_a_datasetdict_through_an_inplace_transform_trains_on_it(workers):
    need_package("datasets")
    names = lesson(
        DATASETDICT.replace("WORKERS", str(workers)),
        """
learn = TrainLearner(nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), dls, F.cross_entropy, lr=0.02,
                     cbs=[DeviceCB(), MetricsCB(accuracy=MulticlassAccuracy(num_classes=4))])
learn.fit(1)
images = show_images(xb[:6], imsize=1, titles=[str(o.item()) for o in yb[:6]])
ax = show_image(xb[0], figsize=(1, 1), title='one')
fig, axs = get_grid(3, title='three')
fig2, axs2 = subplots(1, 2)
""",
    )
    assert names["xb"].shape == (32, 1, 12, 12)
    assert names["yb"].dtype == torch.int64
    assert names["xb"][:, 0, 5, 5].mul(255).sub(20).div(60).round().long().tolist() == names["yb"].tolist()
    assert names["dls"].train.num_workers == workers
    assert len(names["ds"]) == 200
    assert [row["train"] for row in names["learn"].history] == ["train", "eval"]
    assert len(names["images"].axes) == 6
    assert (names["ax"].get_title(), len(names["axs"].flat), len(names["axs2"])) == ("one", 3, 2)


def test_lesson_that_collates_to_the_device_and_back_keeps_shapes_and_values():
    names = lesson(
        PICTURES,
        """
pair = collate_device([trn[0], trn[1]])
nested = to_device({'a': tensor([1., 2.]), 'b': [tensor(3)]})
back = to_cpu(nested)
rows = collate_dict({'x': None, 'y': None})([{'y': 1, 'x': tensor([1.])}, {'y': 2, 'x': tensor([2.])}])
half = to_cpu(tensor([1.5]).half())
""",
    )
    assert [tuple(t.shape) for t in names["pair"]] == [(2, 1, 28, 28), (2,)]
    assert names["pair"][0].device.type == names["def_device"]
    assert names["back"]["a"].tolist() == [1, 2]
    assert names["back"]["b"][0].item() == 3
    assert [column.tolist() for column in names["rows"]] == [[[1], [2]], [1, 2]]
    assert names["half"].dtype == torch.float32


def test_lesson_with_hooks_that_append_stats_plots_histograms_and_dead_shares():
    names = lesson(
        PICTURES,
        """
set_seed(42)
model = get_model(nfs=[1, 4, 8, 8, 8], n_out=4).to(def_device)
learn = MomentumLearner(model, dls, F.cross_entropy, lr=0.05, cbs=[DeviceCB()])
with Hooks(fc.L(model.modules()).filter(fc.risinstance(nn.ReLU)), append_stats) as hooks:
    learn.fit(1, valid=False)
    fig, axs = plt.subplots(1, 2, figsize=(10, 4))
    for h in hooks:
        for i in 0, 1: axs[i].plot(h.stats[i])
    axs[0].set_title('Means'); axs[1].set_title('Stdevs')
    plt.legend(fc.L.range(hooks))
""",
        """
fig, axes = get_grid(len(hooks), figsize=(11, 5))
for ax, h in zip(axes.flat, hooks): show_image(get_hist(h), ax, origin='lower')
shapes = [tuple(get_hist(h).shape) for h in hooks]
fig, axes = get_grid(len(hooks), figsize=(11, 5))
for ax, h in zip(axes.flatten(), hooks):
    ax.plot(get_min(h))
    ax.set_ylim(0, 1)
dead = [get_min(h) for h in hooks]
model(xb)
lengths = [len(h.stats[0]) for h in hooks]
""",
    )
    assert names["shapes"] == [(40, 10)] * 4
    assert names["lengths"] == [10] * 4  # the hooks are gone when the block has ended
    assert all(len(share) == 10 and 0 <= share.min() <= share.max() <= 1 for share in names["dead"])


def test_lesson_with_a_hook_of_its_own_and_a_hooks_callback_records_what_it_says():
    names = lesson(
        PICTURES,
        """
def append_mean(hook, mod, inp, outp):
    if not hasattr(hook, 'means'): hook.means = []
    hook.means.append(to_cpu(outp).mean())

model = get_model(nfs=[1, 4, 8, 8, 8], n_out=4)
hc = HooksCallback(append_mean, mod_filter=fc.risinstance(nn.Conv2d))
learn = MomentumLearner(model, dls, F.cross_entropy, lr=0.05, cbs=[DeviceCB(), hc, SingleBatchCB()])
learn.fit(1)
means = [len(h.means) for h in hc]

hook = Hook(model[0], append_mean)
model(xb)
hook.remove()
model(xb)
""",
    )
    assert names["means"] == [1] * 5
    assert len(names["hook"].means) == 1


def test_lesson_with_activation_stats_iterates_over_its_layers_and_draws_them():
    names = lesson(
        PICTURES,
        """
set_seed(42)
astats = ActivationStats(fc.risinstance(nn.ReLU))
norm = BatchTransformCB(lambda b: (normalize(b[0], xb.mean(), xb.std()), b[1]))
cbs = [DeviceCB(), MetricsCB(accuracy=MulticlassAccuracy()), norm, astats]
model = get_model(nfs=[1, 4, 8, 8, 8], n_out=4).apply(init_weights)
learn = MomentumLearner(model, dls, F.cross_entropy, lr=0.05, cbs=cbs)
learn.fit(2)
stds = [h.stats[1][-1].item() for h in astats]
for h in astats: mean, std, hist = h.stats
astats.color_dim()
astats.plot_stats()
astats.dead_chart()
figures = len(plt.get_fignums())
shapes = [(tuple(get_hist(h).shape), tuple(get_min(h).shape)) for h in astats]
""",
    )
    assert all(std > 0 for std in names["stds"])
    assert names["hist"][0].shape == (40,)
    assert len(names["mean"]) == 20
    assert names["figures"] == 3
    assert names["shapes"] == [((40, 20), (20,))] * 4
    assert names["learn"].history[-1]["accuracy"] > 0.8


def test_lesson_that_looks_for_a_learning_rate_leaves_the_model_as_it_was():
    names = lesson(
        PICTURES,
        """
set_seed(42)
model = get_model(nfs=[1, 4, 8, 8, 8], n_out=4)
start = [p.clone() for p in model.parameters()]
MomentumLearner(model, dls, F.cross_entropy, cbs=[DeviceCB()]).lr_find(gamma=1.3, start_lr=1e-2)
learn = TrainLearner(model, dls, F.cross_entropy, cbs=[DeviceCB()])
suggested = lr_find(learn, gamma=1.5, max_mult=3, start_lr=1e-3, max_epochs=10)
finder = LRFinderCB(gamma=1.5)
TrainLearner(model, dls, F.cross_entropy, lr=1e-3, cbs=[DeviceCB()]).fit(3, cbs=finder)
same = all(torch.equal(a, to_device(b)) for a, b in zip(model.parameters(), start))
rates = [b / a for a, b in zip(finder.lrs, finder.lrs[1:])]
""",
    )
    assert names["same"]
    assert names["rates"] == pytest.approx([1.5] * len(names["rates"]))
    assert len(names["rates"]) > 5
    assert names["suggested"] is None or names["suggested"] > 1e-3


def test_lesson_with_a_one_cycle_schedule_by_batch_records_the_rates():
    names = lesson(
        PICTURES,
        """
def _lr(cb): return cb.pg['lr']
def _beta1(cb): return cb.pg['betas'][0]

set_seed(42)
lr, epochs = 1e-2, 3
tmax = epochs * len(dls.train)
sched = partial(lr_scheduler.OneCycleLR, max_lr=lr, total_steps=tmax)
rec = RecorderCB(lr=_lr, mom=_beta1)
model = get_model(partial(GeneralRelu, leak=0.1, sub=0.4), nfs=[1, 4, 8, 8, 8], norm=nn.BatchNorm2d, n_out=4)
learn = TrainLearner(model.apply(partial(init_weights, leaky=0.1)), dls, F.cross_entropy, lr=lr, opt_func=optim.AdamW,
                     cbs=[DeviceCB(), MetricsCB(accuracy=MulticlassAccuracy()), BatchSchedCB(sched), rec])
learn.fit(epochs)
rec.plot()
""",
        """
halve = EpochSchedCB(partial(lr_scheduler.StepLR, step_size=1, gamma=0.5))
by_epoch = RecorderCB(lr=_lr)
TrainLearner(model, dls, F.cross_entropy, lr=0.08, cbs=[DeviceCB(), halve, by_epoch]).fit(2)

class EveryOther(BaseSchedCB):
    def after_batch(self, learn):
        if learn.training and learn.iter % 2: self.schedo.step()
other = RecorderCB(lr=_lr)
every = EveryOther(partial(lr_scheduler.ExponentialLR, gamma=0.5))
TrainLearner(model, dls, F.cross_entropy, lr=0.08, cbs=[DeviceCB(), every, other]).fit(1)

class LastLoss(HasLearnCB):
    def cleanup_fit(self, learn):
        self.loss = self.learn.loss.item()
        super().cleanup_fit(learn)
last = LastLoss()
TrainLearner(model, dls, F.cross_entropy, lr=0.01, cbs=[DeviceCB(), last]).fit(1)
""",
    )
    lrs, moms = names["rec"].recs["lr"], names["rec"].recs["mom"]
    assert len(lrs) == 30
    assert max(lrs) == pytest.approx(1e-2, rel=0.05)
    assert lrs[0] == pytest.approx(1e-2 / 25)
    assert lrs[-1] < 1e-4
    assert min(moms) < 0.87 < max(moms)
    assert names["learn"].history[-1]["accuracy"] > 0.9
    assert names["by_epoch"].recs["lr"] == pytest.approx([0.08] * 10 + [0.04] * 10)
    assert names["other"].recs["lr"][:4] == pytest.approx([0.08, 0.08, 0.04, 0.04])
    assert names["last"].loss > 0


def test_lesson_whose_lsuv_goes_by_pairs_of_activation_and_conv_ends_at_mean_0_and_std_1():
    names = lesson(
        PICTURES,
        """
act_gr = partial(GeneralRelu, leak=0.1, sub=0.4)
set_seed(42)
model = get_model(act_gr, nfs=[1, 4, 8, 8, 8], n_out=4)
relus = [o for o in model.modules() if isinstance(o, GeneralRelu)]
convs = [o for o in model.modules() if isinstance(o, nn.Conv2d)]
for ms in zip(relus, convs): lsuv_init(model.to(def_device), *ms, xb)

found = []
def note(hook, mod, inp, outp): found.append((outp.mean().item(), outp.std().item()))
with Hooks(relus, note), torch.no_grad(): model(xb)

learn = MomentumLearner(model, dls, F.cross_entropy, lr=0.05, cbs=[DeviceCB(), MetricsCB(accuracy=MulticlassAccuracy())])
learn.fit(3)
ax = plot_func(act_gr())
""",
    )
    assert len(names["found"]) == 4
    for mean, std in names["found"]:
        assert (mean, std) == pytest.approx((0, 1), abs=1e-3)
    assert names["learn"].history[-1]["accuracy"] > max(0.8, names["learn"].history[0]["accuracy"])


def test_lesson_of_2019_with_its_conv_layer_and_lsuv_module_ends_at_std_1_everywhere():
    names = lesson(
        PICTURES,
        """
class ConvLayer(nn.Module):
    def __init__(self, ni, nf, ks=3, stride=2, sub=0., **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(ni, nf, ks, padding=ks//2, stride=stride, bias=True)
        self.relu = GeneralRelu(sub=sub, **kwargs)
    def forward(self, x): return self.relu(self.conv(x))
    @property
    def bias(self): return -self.relu.sub
    @bias.setter
    def bias(self, v): self.relu.sub = -v
    @property
    def weight(self): return self.conv.weight

def cnn(nfs):
    layers = [ConvLayer(a, b, 5 if i == 0 else 3) for i, (a, b) in enumerate(zip([1] + nfs, nfs))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(nfs[-1], 4))
""",
        """
set_seed(42)
flat = [x.reshape(len(x), -1) for x in (trn.x, val.x)]
x_train, x_valid = normalize_to(*flat)
mean_std = [o.item() for o in stats(x_train)]
view = view_tfm(1, 28, 28)
mdl = cnn([4, 8, 16, 16])
init_cnn(mdl)
learn = TrainLearner(mdl, dls, F.cross_entropy, lr=0.2, cbs=[DeviceCB(), BatchTransformCB(lambda b: (view(b[0]), b[1]))])
xb, yb = get_batch(dls.train, learn)
mdl = mdl.to(def_device)

mods = find_modules(mdl, lambda o: isinstance(o, ConvLayer))
with Hooks(mods, append_stat) as hooks:
    mdl(xb)
    before = [(h.mean, h.std) for h in hooks]
after = [lsuv_module(m, xb, mdl) for m in mods]
with Hooks(mods, lsuv_append_stat) as hooks:
    mdl(xb)
    again = [(h.mean, h.std) for h in hooks]
lins = find_mods(mdl, is_lin_layer)
learn.fit(2)
""",
    )
    assert names["mean_std"] == pytest.approx([0, 1], abs=1e-5)
    assert names["xb"].shape == (64, 1, 28, 28)
    assert len(names["mods"]) == len(names["after"]) == 4
    assert all(abs(std - 1) > 1e-2 for _, std in names["before"])
    for (mean, std), (mean_again, std_again) in zip(names["after"], names["again"], strict=True):
        assert std == pytest.approx(1, abs=1e-3)
        assert (mean, std) == pytest.approx((mean_again, std_again), abs=1e-4)
    assert [type(m).__name__ for m in names["lins"]] == ["Conv2d"] * 4 + ["Linear"]


def test_lesson_on_kaiming_finds_the_scale_by_hand():
    names = lesson(
        """
set_seed(42)
x = torch.randn(100, 1, 28, 28)
l1 = nn.Conv2d(1, 32, 5)
rec_fs = l1.weight[0, 0].numel()
init.kaiming_normal_(l1.weight, a=1.)
linear = [o.item() for o in stats(l1(x))]
gains = [gain(a) for a in (1, 0, 0.01, 0.1, math.sqrt(5.))]
kaiming2(l1.weight, a=0)
relu_mean, relu_std = stats(F.leaky_relu(l1(x), 0))
bound = l1.weight.abs().max().item()
bad = nn.Conv2d(1, 32, 5)
kaiming2(bad.weight, a=math.sqrt(5.))
bad_std = F.leaky_relu(bad(x), 0).std().item()
"""
    )
    assert names["rec_fs"] == 25
    assert names["linear"] == pytest.approx([0, 1], abs=0.2)
    assert names["gains"] == pytest.approx([1, 1.41421, 1.41414, 1.40720, 0.57735], abs=1e-5)
    assert names["bound"] == pytest.approx(3**0.5 * 2**0.5 / 5, rel=0.01)
    assert names["relu_std"] > 2 * names["bad_std"]


def test_lesson_that_cleans_up_between_trainings_runs_on():
    names = lesson(
        PICTURES,
        """
import sys
set_seed(42)
first = (torch.rand(3), random.random(), np.random.rand())
clean_ipython_hist(); clean_tb(); clean_mem()
set_seed(42)
second = (torch.rand(3), random.random(), np.random.rand())
class Skip(Callback):
    def before_batch(self, learn): raise CancelBatchException()
class Stop(Callback):
    def before_epoch(self, learn): raise CancelFitException()
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 4))
before = model[1].weight.clone()
Learner(model, dls, F.cross_entropy, lr=0.1, cbs=[TrainCB(), DeviceCB(), Skip()]).fit(1)
Learner(model, dls, F.cross_entropy, lr=0.1, cbs=[TrainCB(), DeviceCB(), Stop()]).fit(1)
clean_mem()
same = torch.equal(to_cpu(model[1].weight), before)
""",
    )
    assert names["first"][0].tolist() == names["second"][0].tolist()
    assert names["first"][1:] == names["second"][1:]
    assert names["same"]
