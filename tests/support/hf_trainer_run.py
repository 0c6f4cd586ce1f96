"""What each of two processes does in test_hf_trainer.py: a run that changes nothing but by LSUV, and what it found."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from required import need_package
from torch import nn
from torch.utils.data import Dataset

need_package("transformers")
import transformers  # noqa: E402

from lsuvcb.integrations.transformers import LSUVCallback  # noqa: E402


class Rows(Dataset):
    def __init__(self):
        self.x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, 64)[:, None]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i]}


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.first: list[torch.Tensor] = []

    def forward(self, x):
        y = self.net(x)
        if torch.is_grad_enabled():
            self.first.append(x)
        return {"loss": y.square().mean()}


if __name__ == "__main__":
    model = Plain()
    args = transformers.TrainingArguments(
        output_dir=sys.argv[1], max_steps=1, per_device_train_batch_size=16, learning_rate=0.0, use_cpu=True, ddp_backend="gloo",
        report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no", seed=3,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=args, train_dataset=Rows(), callbacks=[LSUVCallback(recipe="paper", orthonormal=False)]
    )
    trainer.train()
    found = {"weights": model.state_dict(), "x": model.first[0]}
    torch.save(found, Path(sys.argv[1]) / f"{args.process_index}.pt")
