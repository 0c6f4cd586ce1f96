"""Every float model of torchvision, each with its own form of input: at its target, or named with a reason.

The table at the end of the run counts models, weights brought to their target, and weights left alone by reason.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torchvision.models as tv
import zoo_results
from paper import lsuv_
from probe import forwards, over_all, probe, report_name
from torch import nn

FLOAT = [name for name in tv.list_models() if not name.startswith("quantized_")]
LIGHT = {
    *(
        "alexnet",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "inception_v3",
        "lraspp_mobilenet_v3_large",
        "mnasnet1_0",
    ),
    *("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "r2plus1d_18", "raft_small", "regnet_x_400mf"),
    *(
        "regnet_y_400mf",
        "resnet18",
        "shufflenet_v2_x1_0",
        "squeezenet1_1",
        "ssdlite320_mobilenet_v3_large",
        "swin_v2_t",
    ),
}  # the rest is slow


def detects(name: str) -> bool:
    return any(part in name for part in ("rcnn", "retinanet", "ssd", "fcos"))


def segments(name: str) -> bool:
    return any(part in name for part in ("deeplab", "fcn_", "lraspp"))


def make(name: str) -> nn.Module:
    options: dict[str, Any] = {}
    if detects(name) or segments(name):
        options["weights_backbone"] = None
    if detects(name) and "320" not in name and "ssd" not in name:
        options |= {"min_size": 96, "max_size": 160}  # detectors resize what they are given
    if "rcnn" in name:
        options |= {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    return tv.get_model(name, weights=None, **options).eval()


def inputs(name: str) -> tuple[Any, ...]:
    """What the model takes, as small as it allows."""
    if detects(name):
        return ([torch.rand(3, 96, 96), torch.rand(3, 96, 128)],)
    if name.startswith("raft"):
        return torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)
    if name in ("r3d_18", "mc3_18", "r2plus1d_18"):
        return (torch.randn(1, 3, 8, 56, 56),)
    if name.startswith("swin3d"):
        return (torch.randn(1, 3, 8, 64, 64),)
    if name == "s3d" or name.startswith("mvit"):
        return (torch.randn(1, 3, 16, 224, 224),)
    if name.startswith(("vit", "maxvit")):
        return (torch.randn(1, 3, 224, 224),)
    return (torch.randn(2, 3, 96, 96) if name == "inception_v3" else torch.randn(2, 3, 64, 64),)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in LIGHT else [pytest.mark.slow]) for name in FLOAT]
)
@pytest.mark.filterwarnings("ignore:the batch holds one sample")  # large models, small batches
@pytest.mark.filterwarnings(
    "ignore:the batch has std 49.8"
)  # ssd300_vgg16 brings its images to 255, as its VGG was trained
def test_zoo_model_is_at_its_target_or_named(name, undisturbed, request):
    model, batch = make(name), inputs(name)
    with undisturbed(model), forwards(model) as calls:
        report = lsuv_(model, batch, orthonormal=False, verify=False)
    assert len(calls) == report.passes
    assert report.passes == 1 or any(row.uses > 1 for row in report.layers)
    with torch.no_grad(), probe(model) as seen:
        model(*batch)
    rows = {row.name: row for row in report.layers}
    at_target = [row.name for row in report.layers if row.status in ("scaled", "unchanged")]
    off = {n: over_all(seen[n]) if n in seen else None for n in at_target}
    off = {n: std for n, std in off.items() if std is None or not abs(std - 1) <= 1e-3}
    assert off == {}
    left = {n: row.reason for n, row in rows.items() if n not in at_target}
    assert all(left.values())
    assert {report_name(model, n) for n, p in model.named_parameters() if p.ndim > 1} <= rows.keys()
    request.config.stash.setdefault(zoo_results.KEY, {})[name] = (len(at_target), Counter(left.values()))
