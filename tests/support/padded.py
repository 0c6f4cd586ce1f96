"""Padded sequences, of which some 30 % is valid, and a model that takes them as transformers do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

N, TIME = 16, 20


class Padded(Dataset):
    """Sixteen sequences with their masks; zeros behind the valid frames."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.mask = torch.arange(TIME) < torch.randint(3, 10, (N, 1), generator=g)
        self.x = torch.randn(N, TIME, 8, generator=g) * self.mask[..., None]
        self.y = torch.randint(0, 4, (N,), generator=g)

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "attention_mask": self.mask[i].long(), "labels": self.y[i]}

    def batch(self) -> dict[str, Tensor]:
        return {"x": self.x, "attention_mask": self.mask.long()}


class Frames(nn.Module):
    """Two layers for each frame, and a head on the mean of the valid ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def frames(self, x: Tensor) -> list[Tensor]:
        """What the two layers give."""
        first = self.a(x)
        return [first, self.b(first.tanh())]

    def forward(self, x: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        valid = attention_mask[..., None] > 0
        logits = self.head((self.frames(x)[-1].tanh() * valid).sum(1) / valid.sum(1))
        return {"logits": logits} | ({} if labels is None else {"loss": F.cross_entropy(logits, labels)})

    def valid_stds(self, data: Padded) -> list[float]:
        """Of the two layers' outputs, over the valid frames."""
        return [y[data.mask].detach().double().std(correction=0).item() for y in self.frames(data.x)]
