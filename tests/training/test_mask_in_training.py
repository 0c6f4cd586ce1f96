"""`mask=` in the loop: LSUVCallback and ActivationStats count the valid frames alone."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from padded import Frames, N, Padded
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lsuvcb.engine.errors import LSUVWarning
from lsuvcb.training.activation_stats import ActivationStats
from lsuvcb.training.callbacks import TrainCB
from lsuvcb.training.learner import Learner
from lsuvcb.training.lsuv_callback import LSUVCallback

ONE = pytest.approx(1, abs=1e-3)


class Model(nn.Module):
    """Takes the mapping that stands first in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Frames()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(**batch)["logits"]


def collate(rows: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
    stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {"x": stacked["x"], "attention_mask": stacked["attention_mask"]}, stacked["labels"]


def fit(*cbs: object, data: Padded, model: nn.Module | None = None, batch_size: int = N) -> Model:
    model = Model() if model is None else model
    train = DataLoader(data, batch_size, collate_fn=collate)
    dls = SimpleNamespace(train=train, valid=train)
    Learner(model, dls, F.cross_entropy, lr=0.0, cbs=[TrainCB(), *cbs]).fit(1, valid=False)
    return model


def forms(data: Padded) -> dict[str, object]:
    return {
        "name": "attention_mask",
        "tensor": data.mask,
        "function": lambda name, output: data.mask if output.ndim > 2 else None,
    }


FORMS = pytest.mark.parametrize("form", ["name", "tensor", "function"])


@FORMS
def test_lsuv_callback_counts_the_valid_frames(form, capsys):
    data = Padded()
    cb = LSUVCallback(mask=forms(data)[form], recipe="paper")
    model = fit(cb, data=data)
    assert model.net.valid_stds(data) == [ONE, ONE]
    assert cb.report.converged
    assert capsys.readouterr().out.startswith("LSUV: 3 of 3 layers at std 1; ")


def test_lsuv_callback_refuses_a_mask_that_is_none_where_it_is_made():
    with pytest.raises(TypeError, match="`mask` must be a boolean tensor"):
        LSUVCallback(mask=torch.ones(2, 3))


def test_lsuv_callback_tells_of_a_name_that_the_batch_lacks():
    with pytest.raises(KeyError, match="which the batch does not have; it has 'x', 'attention_mask'"):
        fit(LSUVCallback(mask="mask"), data=Padded())


# ActivationStats


def stats(cb: ActivationStats, name: str) -> tuple[list[float], list[float]]:
    found = cb.stats[name]
    return found.mean.tolist(), found.std.tolist()


@FORMS
def test_activation_stats_counts_the_valid_frames(form):
    data = Padded()
    cb = ActivationStats(["net.a", "net.b", "net.head"], mask=forms(data)[form])
    model = fit(cb, data=data)
    for name, y in zip(("net.a", "net.b"), model.net.frames(data.x), strict=True):
        valid = y[data.mask].detach().double()
        assert stats(cb, name) == (
            pytest.approx([valid.mean().item()], abs=1e-6),
            pytest.approx([valid.std(correction=0).item()], rel=1e-5),
        )
        assert cb.stats[name].hist.sum() == valid.numel()
    assert cb.stats["net.head"].hist.sum() == N * 4  # it gives no frames: all of it counts


def test_activation_stats_takes_the_mask_of_each_batch_by_its_name():
    data = Padded()
    cb = ActivationStats(["net.a"], mask="attention_mask")
    model = fit(cb, data=data, batch_size=4)
    y = model.net.a(data.x).detach()
    parts = [y[i : i + 4][data.mask[i : i + 4]] for i in range(0, N, 4)]
    assert cb.stats["net.a"].std.tolist() == pytest.approx([part.std(correction=0).item() for part in parts], rel=1e-4)


def test_activation_stats_without_a_mask_counts_all():
    data = Padded()
    cb = ActivationStats(["net.a"])
    model = fit(cb, data=data)
    assert stats(cb, "net.a")[1] == pytest.approx([model.net.a(data.x).std(correction=0).item()], rel=1e-5)


def test_activation_stats_warns_of_a_mask_that_fits_no_layer():
    data = Padded()
    with pytest.warns(
        LSUVWarning, match="`mask` of ActivationStats fits the output of no layer: all values were counted"
    ):
        fit(ActivationStats(["net.a"], mask=data.mask[:, :7]), data=data)


@pytest.mark.parametrize("wrong", [3, torch.ones(2, 3)])
def test_activation_stats_refuses_a_mask_that_is_none_where_it_is_made(wrong):
    with pytest.raises(TypeError, match="`mask` must be a boolean tensor"):
        ActivationStats(mask=wrong)


def test_activation_stats_with_a_mask_survives_two_fits_and_a_pickle():
    data = Padded()
    cb = ActivationStats(["net.a"], mask=data.mask)
    model = fit(cb, data=data)
    once = stats(cb, "net.a")
    fit(cb, data=data, model=model)
    assert stats(cb, "net.a") == once
    assert stats(pickle.loads(pickle.dumps(cb)), "net.a") == once
