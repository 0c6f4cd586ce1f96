"""Hugging Face models, small and with random weights: every weight at work at its target, or named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from paper import lsuv_
from probe import over_all, probe
from required import need_package
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.slow

IDS = torch.randint(2, 97, (8, 12), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SIZE = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BOTH_ENDS = {
    "vocab_size": 97, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
TEXT = {"input_ids": IDS}
PAIR = {"input_ids": IDS, "decoder_input_ids": IDS}

# The class of the model, its configuration, its batch, and how many weights are scaled, counted by hand.
Case = tuple[str, str, dict[str, Any], dict[str, Any], int]
MODELS: dict[str, Case] = {
    # four to a block; the head is tied to the embedding
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4}, TEXT, 8),
    # six to a layer, the pooler and the classifier
    "bert": ("BertForSequenceClassification", "BertConfig", SIZE, TEXT, 14),
    # one shared layer of six, the mapping from the embedding, the pooler
    "albert": ("AlbertModel", "AlbertConfig", SIZE | {"embedding_size": 16}, TEXT, 8),
    # seven to a layer, and the head
    "llama": ("LlamaForCausalLM", "LlamaConfig", SIZE | {"num_key_value_heads": 2}, TEXT, 15),
    # four of attention, the router, two stacks of experts; and the head
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", SIZE | {"num_key_value_heads": 2, "num_local_experts": 4}, TEXT, 15),
    # six to an encoder layer, ten to a decoder layer; the head is tied
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
        PAIR, 32,
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", BOTH_ENDS, PAIR, 32),
    # the patches, six to a layer, the pooler
    "vit": (
        "ViTModel", "ViTConfig", {"image_size": 32, "patch_size": 8} | {k: v for k, v in SIZE.items() if k != "vocab_size"},
        {"pixel_values": IMAGES}, 14,
    ),
    # projections, convolution, selection and time step: five to a layer; the head is tied
    "mamba": ("MambaForCausalLM", "MambaConfig", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2}, TEXT, 10),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, Any], int]:
    transformers = need_package("transformers")
    transformers.logging.set_verbosity_error()
    if request.param == "mixtral" and not hasattr(F, "grouped_mm"):
        pytest.skip("this torch has no grouped_mm, by which transformers runs the experts")
    model, config, arguments, batch, count = MODELS[request.param]
    return getattr(transformers, model)(getattr(transformers, config)(**arguments)).eval(), batch, count


@pytest.mark.filterwarnings("default")  # transformers warns of much that is not ours
@pytest.mark.parametrize("orthonormal", [False, True])
def test_transformers_model_is_at_its_target_or_named(case, orthonormal, undisturbed: Callable[..., Any]):
    model, batch, count = case
    with undisturbed(model, draws=orthonormal):
        report = lsuv_(model, batch, orthonormal=orthonormal)
    rows = {r.name: r for r in report.layers}
    assert sum(r.status == "scaled" for r in report.layers) == count
    assert all(r.reason for r in report.layers if r.status == "left alone")
    assert report.converged
    assert {r.name for r in report.layers if r.uses == 0 and r.status == "scaled"} == set()
    with torch.no_grad(), probe(model) as seen:
        model(**batch)
    off = {name: uses for name, uses in seen.items() if abs(over_all(uses) - 1) > 1e-3}
    assert {name for name in off if rows[name].status != "left alone"} == set()
