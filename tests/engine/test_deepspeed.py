"""A model that DeepSpeed's ZeRO has in its hands: refused, with what to do instead.

deepspeed is not installed here. The parameters of these tests have the attributes and the sizes that deepspeed 0.19.8 left on
those of this net, on a CPU with one gloo process: `zero.Init`, and `deepspeed.initialize` at stages 1, 2 and 3.
"""

from __future__ import annotations

import enum

import pytest
import torch
from torch import nn

from lsuvcb import LSUVError, lsuv_, survey


class ZeroParamStatus(enum.Enum):
    AVAILABLE = 1
    NOT_AVAILABLE = 2


def by_zero_init(net):
    for i, p in enumerate(net.parameters()):
        p.ds_id, p.ds_shape, p.ds_numel, p.ds_persist = i, p.shape, p.numel(), True
        p.ds_tensor, p.ds_status = p.detach().flatten().clone(), ZeroParamStatus.NOT_AVAILABLE
        p.data = torch.empty(0)


def gathered(net):
    for p in net.parameters():
        p.data = p.ds_tensor.view(p.ds_shape)
        p.ds_status, p._ds_z3_gathered_param_context_depth = ZeroParamStatus.AVAILABLE, 1


def by_initialize(stage):
    def leave(net):
        if stage == 3:
            by_zero_init(net)
        for p in net.parameters():
            setattr(p, "_z3_optimizer" if stage == 3 else "_hp_mapping", object() if stage == 3 else None)
        if stage == 3:  # hooks on each module gather its parameters for the forward, and let them go
            for module in net.children():
                module.register_forward_pre_hook(lambda module, args: gathered(module))
                module.register_forward_hook(lambda module, args, y: let_go(module))

    return leave


def let_go(net):
    for p in net.parameters():
        p.data, p.ds_status = torch.empty(0), ZeroParamStatus.NOT_AVAILABLE


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.fixture
def batch():
    return torch.randn(64, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("call", [lsuv_, survey])
def test_partitioned_parameters_are_refused_with_the_way_to_gather_them(call, batch):
    model = net()
    by_zero_init(model)
    with pytest.raises(
        LSUVError, match=r"parameter 'weight' of '0' \(Linear\) has no values here: DeepSpeed's ZeRO stage 3"
    ):
        call(model, batch)
    with pytest.raises(
        LSUVError, match=r"GatheredParameters\(list\(model.parameters\(\)\), modifier_rank=0\): lsuv_\(model"
    ):
        call(model, batch)


def test_partitioned_parameters_that_are_gathered_are_initialised(batch):
    model = net()
    by_zero_init(model)
    gathered(model)
    assert lsuv_(model, batch).converged
    assert model[0](batch).std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_parameters_with_a_copy_in_the_optimizer_are_refused(stage, batch):
    model = net()
    by_initialize(stage)(model)
    with pytest.raises(LSUVError, match="has a copy in DeepSpeed's ZeRO optimizer, whose first step would undo LSUV"):
        lsuv_(model, batch)
    with pytest.raises(
        LSUVError, match=r"before the trainer that calls it: `lsuv_\(model, batch\)`. No weight was changed"
    ):
        lsuv_(model, batch)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_survey_reads_parameters_that_have_a_copy(stage, batch):
    model, plain = net(), survey(net(), batch, backward=False)
    by_initialize(stage)(model)
    assert survey(model, batch, backward=False).to_dict()["layers"] == plain.to_dict()["layers"]
