"""What each of two processes does in test_lightning_features.py: ModelParallelStrategy both ways, and Fabric with DDP."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from required import need_package
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

need_package("lightning")
import lightning.pytorch as pl  # noqa: E402
from lightning.fabric import Fabric  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from lightning.pytorch.strategies import ModelParallelStrategy  # noqa: E402

from lsuvcb import lsuv_, survey  # noqa: E402
from lsuvcb.integrations.lightning import LSUVCallback  # noqa: E402

PAPER = {"recipe": "paper", "orthonormal": False}


def rows() -> Tensor:
    return torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, 64)[:, None]


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


class Plain(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.first: list[Tensor] = []

    def training_step(self, batch, batch_idx):
        self.first.append(batch[0])
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


class Sharded(Plain):
    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        for layer in (self.net[0], self.net[2], self.net[4], self.net):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class Split(Plain):
    def configure_model(self) -> None:
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)


def fitted(module: Plain, data: int, tensor: int, folder: str | None) -> dict[str, Tensor]:
    """The module's whole weights after a fit that changes nothing but by LSUV, its first batch, how much of a weight is here."""
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=ModelParallelStrategy(data_parallel_size=data, tensor_parallel_size=tensor),
        max_epochs=1, logger=CSVLogger(folder) if folder else False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[LSUVCallback(**PAPER, log=folder is not None)],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(rows()), batch_size=32, shuffle=True))
    here = torch.tensor(module.net[0].weight.to_local().numel())
    return {"x": module.first[0], "here": here, **whole(module.net)}


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in model.state_dict().items()}


def set_up() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By Fabric, with rows of its own in each process: after a survey and `lsuv_`, and after a step of training behind it."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    plain = net()
    model, optimizer = fabric.setup(plain, torch.optim.SGD(plain.parameters(), 0.1))
    x = rows().chunk(2)[fabric.global_rank]
    survey(model, x)
    lsuv_(model, x, **PAPER)
    found = {"x": x, **copy.deepcopy(whole(plain))}
    fabric.backward(model(x).square().mean())
    optimizer.step()
    return found, whole(plain)


if __name__ == "__main__":
    found = {"sharded": fitted(Sharded(), 2, 1, f"{sys.argv[1]}/logs"), "split": fitted(Split(), 1, 2, None)}
    found["fabric"], found["trained"] = set_up()
    torch.save(found, Path(sys.argv[1]) / f"{torch.distributed.get_rank()}.pt")
