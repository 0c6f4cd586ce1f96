"""What each of two DDP processes does in test_lightning.py: a fit that changes nothing but by LSUV, and what it found."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from required import need_package
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

need_package("lightning")
import lightning.pytorch as pl  # noqa: E402

from lsuvcb.integrations.lightning import LSUVCallback  # noqa: E402


class Plain(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.first: list[torch.Tensor] = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        self.first.append(batch[0])
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


if __name__ == "__main__":
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, 64)[:, None]
    module = Plain()
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[LSUVCallback(recipe="paper", orthonormal=False)],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(x), batch_size=32, shuffle=True))
    found = {"weights": module.state_dict(), "x": module.first[0]}
    torch.save(found, Path(sys.argv[1]) / f"{trainer.global_rank}.pt")
