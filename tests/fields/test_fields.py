"""Models of the packages that people use in their fields: every weight at its target, or named, and nothing disturbed.

pip install -e '.[fields]' && pytest -m slow tests/fields
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from field_models import MODELS, Made, agents, gated, radial
from paper import lsuv_ as paper_lsuv_
from probe import forwards, over_all, probe
from torch import Tensor, nn
from traces import undisturbed

from lsuvcb import LSUVReport, NoLayersError, lsuv_

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # these packages warn of much that is not ours
    pytest.mark.filterwarnings("error::lsuvcb.engine.errors.LSUVWarning"),
]


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Any, int]:
    torch.manual_seed(0)
    model = MODELS[request.param]
    return *model.make(), model.count


def run(model: nn.Module, batch: Any) -> None:
    """One forward as the package's users write it."""
    with torch.no_grad():
        if isinstance(batch, dict):
            model(**batch)
        elif isinstance(batch, (tuple, list)):
            model(*batch)
        else:
            model(batch.clone())


def short(name: str) -> str:
    """A parameter's name as probe and report agree on it, whatever module holds it."""
    return name.removesuffix(".weight")


def matrices(model: nn.Module) -> set[str]:
    return {short(name) for name, p in model.named_parameters() if p.ndim > 1}


def errors(model: nn.Module, batch: Any, report: LSUVReport) -> dict[str, float]:
    """How far each weight that the report calls done is from its target, by the probe; as a part of the target.

    A weight of several names is looked at under its first.
    """
    with probe(model) as seen:
        run(model, batch)
    first = matrices(model)
    stds = {short(name): over_all(uses) for name, uses in seen.items()}
    done = {short(row.name): row.target for row in report.layers if row.status in ("scaled", "unchanged")}
    return {name: abs(stds[name] / target - 1) for name, target in done.items() if name in first}


def test_field_model_is_at_its_target_or_named_in_one_pass(case):
    model, batch, count = case
    run(model.eval(), batch)  # some note on a module what they found out in its first forward; widths are known then
    with undisturbed(model), forwards(model) as calls:
        report = paper_lsuv_(model, batch, orthonormal=False, verify=False)
    assert len(calls) == report.passes
    assert report.passes == 1 or any(row.uses > 1 for row in report.layers)
    off = errors(model, batch, report)
    assert len(off) == count
    assert {name: error for name, error in off.items() if error > 1e-3} == {}
    assert all(row.reason for row in report.layers if row.status == "left alone")
    assert matrices(model) <= {short(row.name) for row in report.layers}


def test_field_model_takes_the_default_recipe_as_it_trains(case):
    model, batch, _ = case
    report = lsuv_(model.train(), batch)
    assert report.converged
    assert matrices(model) <= {short(row.name) for row in report.layers}
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(row.std_after is None or row.std_after < float("inf") for row in report.layers)


# e3nn, whose weights the probe does not see: they are multiplied by a number, or cut into pieces, before they are used


def inputs_of(model: nn.Module, *modules: nn.Module, batch: Tensor) -> list[Tensor]:
    """What each of the modules is given in one forward."""
    given: dict[nn.Module, Tensor] = {}
    handles = [m.register_forward_pre_hook(lambda m, args: given.update({m: args[0]})) for m in modules]
    run(model, batch)
    for handle in handles:
        handle.remove()
    return [given[m] for m in modules]


def made(of: Made) -> Made:
    model, batch = of
    run(model.eval(), batch)
    return model, batch


def test_layer_that_divides_its_weight_by_the_root_of_its_width_is_at_its_target():
    model, batch = made(radial())
    with undisturbed(model):
        report = paper_lsuv_(model, batch, orthonormal=False, verify=False)
    layers = list(model.children())
    given = inputs_of(model, *layers, batch=batch)
    stds = [(x @ m.weight / len(m.weight) ** 0.5).std(correction=0).item() for x, m in zip(given, layers, strict=True)]
    assert stds == pytest.approx([1, 1, 1], abs=1e-3)
    assert [row.status for row in report.layers] == ["scaled"] * 3
    assert report.passes == 1


def test_equivariant_layer_of_one_path_is_scaled_and_those_of_several_are_named():
    model, batch = made(gated())
    with undisturbed(model):
        report = paper_lsuv_(model, batch, orthonormal=False, verify=False)
    rows = {row.name: row for row in report.layers}
    assert {rows[n].reason for n in ("0", "2")} == {"used in parts: tensordot works on a slice of it"}
    assert rows["4"].status == "scaled"
    (x,) = inputs_of(model, model[4], batch=batch)
    assert model[4](x).std(correction=0).item() == pytest.approx(
        16**-0.5, rel=1e-3
    )  # of 16 scalars, behind the product


def test_agents_with_a_net_each_run_under_vmap_where_no_weight_shows():
    model, batch = made(agents(share=False))
    message = r"used under torch\.vmap, which hands the ops other tensors in its place: 'params\.0\.weight'"
    with undisturbed(model, weights=True), pytest.raises(NoLayersError, match=message):
        lsuv_(model, batch)
