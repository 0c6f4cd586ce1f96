"""`mask=` in the LSUVCallback of other trainers: the name of a mask in their batches, a tensor, a function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from padded import Frames, N, Padded
from required import need_package
from torch.utils.data import DataLoader, SequentialSampler

pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' advice on loaders and devices, their own deprecations

ONE = pytest.approx(1, abs=1e-3)


def with_lightning(mask: Any, data: Padded) -> tuple[Frames, Any]:
    need_package("lightning")
    import lightning.pytorch as pl

    from lsuvcb.integrations.lightning import LSUVCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Frames()

        def training_step(self, batch: Any, i: int) -> torch.Tensor:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.0)

    module, cb = Module(), LSUVCallback(mask=mask, recipe="paper")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=[cb], **quiet)
    trainer.fit(module, DataLoader(data, N))
    return module.net, cb


def with_transformers(mask: Any, data: Padded) -> tuple[Frames, Any]:
    need_package("transformers")
    need_package("accelerate")
    import transformers
    from accelerate.state import AcceleratorState

    from lsuvcb.integrations.transformers import LSUVCallback

    class Ordered(transformers.Trainer):
        def _get_train_sampler(self, *given: Any) -> SequentialSampler:
            return SequentialSampler(data)

    model, cb = Frames(), LSUVCallback(mask=mask, recipe="paper")
    args = transformers.TrainingArguments(
        output_dir="unused", max_steps=1, per_device_train_batch_size=N, learning_rate=0.0, use_cpu=True, report_to=[],
        disable_tqdm=True, save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    try:
        Ordered(model=model, args=args, train_dataset=data, callbacks=[cb]).train()
    finally:
        AcceleratorState._reset_state(True)
    return model, cb


FORMS = {
    "name": lambda data: "attention_mask",
    "tensor": lambda data: data.mask,
    "function": lambda data: lambda name, output: data.mask if output.ndim > 2 else None,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", [with_lightning, with_transformers])
def test_callback_of_a_trainer_counts_the_valid_frames(run, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = Padded()
    net, cb = run(FORMS[form](data), data)
    assert net.valid_stds(data) == [ONE, ONE]
    assert cb.report.converged
    assert [row.status for row in cb.report.layers] == ["scaled"] * 3
