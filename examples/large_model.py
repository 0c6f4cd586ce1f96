"""A decoder that no device holds whole: built on the meta device, sharded, materialised, initialised, trained for a few steps.

    torchrun --nproc-per-node 2 examples/large_model.py                           # FSDP2
    torchrun --nproc-per-node 2 examples/large_model.py --tensor-parallel 2       # tensor parallel
    torchrun --nproc-per-node 4 examples/large_model.py --tensor-parallel 2       # both, on a 2 x 2 mesh

Runs on NCCL where there are GPUs, else on gloo. docs/large_models.md says what it costs at larger sizes.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

from lsuvcb import lsuv_


class Block(nn.Module):
    """Attention and a gated MLP, each behind a norm, added to the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention_norm(x)
        # a rank of a tensor parallel net has some of the heads
        parts = (
            layer(h).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        x = x + self.out(F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2))
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """Token indices (batch, length) -> logits (batch, length, vocabulary)."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def spread(model: Decoder, mesh: DeviceMesh) -> Decoder:
    """Shard the model in place over a mesh with the dimensions "data" and "tensor"."""
    for block in model.blocks:
        if mesh["tensor"].size() > 1:
            columns = dict.fromkeys(("query", "key", "value", "gate", "up"), ColwiseParallel())
            parallelize_module(block, mesh["tensor"], {**columns, "out": RowwiseParallel(), "down": RowwiseParallel()})
        if mesh["data"].size() > 1:
            fully_shard(block, mesh=mesh["data"])
    return fully_shard(model, mesh=mesh["data"]) if mesh["data"].size() > 1 else model


def materialise(model: Decoder, device: str, seed: int = 0) -> None:
    """Give each rank memory for its shards, and PyTorch's own values: lsuv_ leaves embeddings, norms and the head as they are.

    On a GPU a DTensor draws what its rank's shard has in the whole tensor. On a CPU each rank draws for itself, so that shards
    need seeds of their own, and what several ranks hold alike needs the same one.
    """
    model.to_empty(device=device)
    for number, module in enumerate(model.modules()):
        if hasattr(module, "reset_parameters"):
            sharded = [p for p in module.parameters(recurse=False) if isinstance(p, DTensor)]
            place = sharded[0].device_mesh.get_coordinate() if sharded and device == "cpu" else ()
            torch.manual_seed(hash((seed, number, *place)))
            module.reset_parameters()


def main(arguments: argparse.Namespace) -> None:
    world, gpu = int(os.environ["WORLD_SIZE"]), torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo")
    shape = (world // arguments.tensor_parallel, arguments.tensor_parallel)
    mesh = init_device_mesh(device, shape, mesh_dim_names=("data", "tensor"))
    with torch.device("meta"):
        model = Decoder(arguments.vocabulary, arguments.width, arguments.depth, arguments.heads)
    materialise(spread(model, mesh), device)

    # ranks with other data have other tokens; those that share the layers of one replica have the same
    draws = torch.Generator().manual_seed(mesh["data"].get_local_rank())
    size = (arguments.batch, arguments.length + 1)
    tokens = torch.randint(arguments.vocabulary, size, generator=draws).to(device)
    report = lsuv_(model, tokens[:, :-1])
    say = print if dist.get_rank() == 0 else lambda *_: None
    say(str(report).splitlines()[0])

    optimizer = optim.AdamW(model.parameters(), lr=1e-3, foreach=False)  # of several meshes, one after the other
    for step in range(arguments.steps):
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        say(f"step {step + 1}: loss {loss.item():.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"width": 64, "depth": 4, "heads": 4, "vocabulary": 256, "length": 32, "batch": 16, "steps": 2}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tensor-parallel", type=int, default=1, help="ranks that share each layer")
    main(parser.parse_args())
