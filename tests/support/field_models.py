"""Small models of other packages, with random weights and a batch each: see tests/fields/test_fields.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from required import need_package
from torch import Tensor, nn

Made = tuple[nn.Module, Any]


class Model(NamedTuple):
    """A model of a package.

    Attributes:
        package: its name in required.PACKAGES.
        make: a new model and a batch as `lsuv_` takes it.
        count: how many weights reach their target: all that have two dimensions or more, but for those that the report must name
            (look-up tables, recurrent layers, attention's packed projections, stacks of which an op takes a slice).
    """

    package: str
    make: Callable[[], Made]
    count: int


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def below(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, n, shape, generator=torch.Generator().manual_seed(seed))


# Graphs: 40 nodes of 16 features, 160 edges

EDGES = torch.stack([below(40, 160, seed=1), below(40, 160, seed=2)])
TIMES = torch.tensor([1, 100, 500, 900])


def of_graphs(name: str, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        need_package("torch_geometric")
        from torch_geometric.nn import models

        return getattr(models, name)(16, 32, num_layers=3, out_channels=5, **options), (draw(40, 16), EDGES)

    return make


class Relational(nn.Module):
    """Two layers over three kinds of edges, and a head."""

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.a, self.b, self.head = layer(16, 32, 3), layer(32, 32, 3), nn.Linear(32, 5)

    def forward(self, x: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
        return self.head(self.b(self.a(x, edges, kinds).relu(), edges, kinds).relu())


def relational() -> Made:
    need_package("torch_geometric")
    from torch_geometric.nn import RGCNConv

    return Relational(RGCNConv), (draw(40, 16), EDGES, below(3, 160))


def heterogeneous() -> Made:
    """Two kinds of nodes, whose widths the layers learn from the first batch."""
    need_package("torch_geometric")
    from torch_geometric import nn as nets

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nets.SAGEConv((-1, -1), 32), nets.SAGEConv((-1, -1), 32)
            self.head = nets.Linear(-1, 4)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.head(self.b(self.a(x, edge_index).relu(), edge_index).relu())

    there, back = ("user", "likes", "item"), ("item", "liked by", "user")
    nodes = {"user": draw(40, 8), "item": draw(40, 12)}
    return nets.to_hetero(Net(), (["user", "item"], [there, back])), (nodes, {there: EDGES, back: EDGES.flip(0)})


class OnGraphs(nn.Module):
    """Takes a batch of graphs as the package's loader gives it."""

    def __init__(self, nets: Any) -> None:
        super().__init__()
        mlps = [nn.Sequential(nn.Linear(n, 32), nn.ReLU(), nn.Linear(32, 32)) for n in (16, 32)]
        self.a, self.b = (nets.GINConv(mlp) for mlp in mlps)
        self.head, self.pool = nn.Linear(32, 2), nets.global_mean_pool

    def forward(self, data: Any) -> Tensor:
        x = self.b(self.a(data.x, data.edge_index).relu(), data.edge_index).relu()
        return self.head(self.pool(x, data.batch))


def batch_of_graphs() -> Made:
    need_package("torch_geometric")
    from torch_geometric import nn as nets
    from torch_geometric.data import Batch, Data

    return OnGraphs(nets), Batch.from_data_list([Data(draw(40, 16, seed=i), EDGES) for i in range(4)])


def neighbours(positions: Tensor, molecule: Tensor) -> tuple[Tensor, Tensor]:
    distance = torch.cdist(positions, positions)
    same = (molecule[:, None] == molecule) & ~torch.eye(len(positions), dtype=torch.bool)
    edges = same.nonzero().T
    return edges, distance[edges[0], edges[1]]


def schnet() -> Made:
    need_package("torch_geometric")
    from torch_geometric.nn import SchNet

    model = SchNet(32, 32, num_interactions=2, num_gaussians=16, interaction_graph=neighbours)
    return model, (below(9, 24) + 1, draw(24, 3) * 2, torch.arange(24) // 8)


# Equivariant nets


def radial() -> Made:
    need_package("e3nn")
    from e3nn.nn import FullyConnectedNet

    return FullyConnectedNet([8, 32, 32, 4], nn.functional.silu), draw(128, 8)


def gated() -> Made:
    """Scalars and vectors through two linear layers with a gate behind each, and a head."""
    need_package("e3nn")
    from e3nn import o3
    from e3nn.nn import Gate

    gate = Gate("16x0e", [torch.relu], "8x0e", [torch.sigmoid], "8x1o")
    layers = o3.Linear("8x0e + 4x1o", gate.irreps_in), gate, o3.Linear(gate.irreps_out, gate.irreps_in), gate
    return nn.Sequential(*layers, o3.Linear(gate.irreps_out, "1x0e")), draw(128, 20)


# Images


def segments(name: str, encoder: str, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        package = need_package("segmentation_models_pytorch")
        return getattr(package, name)(encoder, encoder_weights=None, classes=3, **options), draw(2, 3, 64, 64)

    return make


def two_towers(**vision: Any) -> Callable[[], Made]:
    def make() -> Made:
        need_package("open_clip")
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        text = CLIPTextCfg(context_length=12, vocab_size=97, width=32, heads=4, layers=2)
        size = vision["image_size"]
        return CLIP(32, CLIPVisionCfg(**vision), text), (draw(8, 3, size, size), below(96, 8, 12) + 1)

    return make


def unet() -> Made:
    model = need_package("diffusers").UNet2DModel(
        8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, (draw(4, 3, 8, 8), TIMES)


def unet_with_text() -> Made:
    model = need_package("diffusers").UNet2DConditionModel(
        8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
    )  # fmt: skip
    return model, (draw(4, 4, 8, 8), TIMES, draw(4, 7, 32))


def diffusion_transformer() -> Made:
    model = need_package("diffusers").DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, norm_num_groups=8
    )
    return model, {"hidden_states": draw(4, 4, 8, 8), "timestep": TIMES, "class_labels": torch.arange(4)}


# Scans


def scans(name: str, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        package = need_package("transformers")
        package.logging.set_verbosity_error()
        config = getattr(package, f"{name}Config")(vocab_size=97, hidden_size=32, num_hidden_layers=2, **options)
        return getattr(package, f"{name}ForCausalLM")(config), {"input_ids": below(96, 8, 12), "use_cache": False}

    return make


# Agents


def experience(package: Any) -> Any:
    """A batch as a collector gives it: with a part of its own for what came next."""
    rewards = package.TensorDict({"reward": draw(128, 1)}, [128])
    return package.TensorDict({"observation": draw(128, 12), "action": draw(128, 4), "next": rewards}, [128])


def actor_and_critic() -> Made:
    need_package("torchrl")
    import tensordict
    from tensordict.nn import NormalParamExtractor, TensorDictModule
    from torchrl.modules import MLP, ActorValueOperator, ProbabilisticActor, TanhNormal, ValueOperator

    trunk = MLP(in_features=12, out_features=32, num_cells=[32], activate_last_layer=True)
    policy = nn.Sequential(MLP(in_features=32, out_features=8, num_cells=[32]), NormalParamExtractor())
    model = ActorValueOperator(
        TensorDictModule(trunk, ["observation"], ["hidden"]),
        ProbabilisticActor(
            TensorDictModule(policy, ["hidden"], ["loc", "scale"]),
            in_keys=["loc", "scale"],
            distribution_class=TanhNormal,
        ),
        ValueOperator(MLP(in_features=32, out_features=1, num_cells=[32]), in_keys=["hidden"]),
    )
    return model, experience(tensordict)


def agents(share: bool) -> Made:
    """Four agents with a net of two hidden layers, one for all or one each."""
    need_package("torchrl")
    from torchrl.modules import MultiAgentMLP

    sizes = {"n_agent_inputs": 6, "n_agent_outputs": 3, "n_agents": 4, "depth": 2, "num_cells": 32}
    return MultiAgentMLP(**sizes, centralized=False, share_params=share), draw(64, 4, 6)


def dueling() -> Made:
    need_package("torchrl")
    from torchrl.modules import DuelingCnnDQNet

    cnn = {"num_cells": [8, 16, 16], "kernel_sizes": [3, 3, 3], "strides": [2, 1, 1]}
    return DuelingCnnDQNet(4, 1, cnn_kwargs=cnn, mlp_kwargs={"depth": 1, "num_cells": 32}), draw(32, 3, 24, 24)


# Time series


def forecasts(name: str, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        package = need_package("pytorch_forecasting")
        import pandas

        rows = [
            {"series": str(i), "time": t, "y": 3 + float(torch.tensor(t / 3 + i).sin()), "month": str(t % 4)}
            for i in range(4)
            for t in range(40)
        ]
        data = package.TimeSeriesDataSet(
            pandas.DataFrame(rows), time_idx="time", target="y", group_ids=["series"], max_encoder_length=12,
            max_prediction_length=4, static_categoricals=["series"], time_varying_known_categoricals=["month"],
            time_varying_unknown_reals=["y"],
        )  # fmt: skip
        model = getattr(package, name).from_dataset(data, **options)
        x, _ = next(iter(data.to_dataloader(train=False, batch_size=32)))
        return model, [x]

    return make


VIT = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 16}
RESNET = {"image_size": 64, "layers": (1, 1, 1, 1), "width": 8, "head_width": 8}

MODELS: dict[str, Model] = {
    "GCN": Model("torch_geometric", of_graphs("GCN"), 3),
    "GAT": Model("torch_geometric", of_graphs("GAT", heads=4), 3),
    "GraphSAGE": Model("torch_geometric", of_graphs("GraphSAGE"), 6),
    "batch of graphs": Model("torch_geometric", batch_of_graphs, 5),
    "relational": Model("torch_geometric", relational, 3),
    "heterogeneous": Model("torch_geometric", heterogeneous, 10),
    "SchNet": Model("torch_geometric", schnet, 12),
    "Unet": Model("segmentation_models_pytorch", segments("Unet", "resnet18"), 31),
    "Unet on a transformer": Model("segmentation_models_pytorch", segments("Unet", "mit_b0"), 69),
    "DeepLabV3Plus": Model("segmentation_models_pytorch", segments("DeepLabV3Plus", "resnet18"), 35),
    "CLIP": Model("open_clip", two_towers(**VIT), 15),
    "CLIP on a resnet": Model("open_clip", two_towers(**RESNET), 27),
    "PPO": Model("torchrl", actor_and_critic, 6),
    "agents": Model("torchrl", lambda: agents(share=True), 3),
    "dueling": Model("torchrl", dueling, 7),
    "TFT": Model("pytorch_forecasting", forecasts("TemporalFusionTransformer", hidden_size=16, attention_head_size=2), 37),
    "NHiTS": Model("pytorch_forecasting", forecasts("NHiTS", hidden_size=32), 12),
    "UNet": Model("diffusers", unet, 51),
    "UNet with text": Model("diffusers", unet_with_text, 83),
    "DiT": Model("diffusers", diffusion_transformer, 21),
    "Mamba-2": Model("transformers", scans("Mamba2", head_dim=16, num_heads=4, n_groups=1, state_size=16, chunk_size=8), 7),
    "FalconMamba": Model("transformers", scans("FalconMamba"), 10),
    "RWKV": Model("transformers", scans("Rwkv", attention_hidden_size=32, context_length=16), 15),
}  # fmt: skip
