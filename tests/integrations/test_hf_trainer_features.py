"""LSUVCallback beside what the Trainer has: ways to feed, accumulation, compile, DeepSpeed, adapters, models of other fields."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from required import need_package
from torch.utils.data import Dataset, IterableDataset

from lsuvcb import LSUVError, lsuv_

need_package("transformers")
need_package("accelerate")
import transformers  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402

from lsuvcb.integrations.transformers import LSUVCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own deprecations

IDS = torch.randint(2, 64, (48, 12), generator=torch.Generator().manual_seed(0))
FROZEN, ZERO = "frozen (requires_grad=False)", "all zero, as a branch that starts silent"


@pytest.fixture(autouse=True)
def accelerate_afresh():
    """One process has one precision, which a run leaves behind."""
    yield
    AcceleratorState._reset_state(True)


class Rows(Dataset):
    """Columns, read row by row."""

    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i):
        return {name: values[i] for name, values in self.columns.items()}


class Stream(IterableDataset):
    """Rows in an order that a generator of its own draws anew for each epoch."""

    def __init__(self, rows):
        self.rows, self.order = rows, torch.Generator().manual_seed(4)

    def __iter__(self):
        return (self.rows[i] for i in torch.randperm(len(self.rows), generator=self.order).tolist())


class Uneven(Rows):
    """Sequences of several lengths."""

    def __getitem__(self, i):
        return {name: values[i][: 4 + i % 3 * 4] for name, values in self.columns.items()}


class Collate:
    """The default collator, and padding where lengths differ; keeps the batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, rows):
        longest = max(len(row["input_ids"]) for row in rows) if "input_ids" in rows[0] else 0
        if longest:
            pad = torch.nn.functional.pad
            rows = [{k: pad(v, (0, longest - len(v))) for k, v in row.items()} for row in rows]
        self.batches.append(transformers.default_data_collator(rows))
        return dict(self.batches[-1])


class Start(transformers.TrainerCallback):
    """The weights right before the first step."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.weights = weights(model)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def text():
    return Rows(input_ids=IDS, labels=IDS)


def gpt2(dropout=0.1):
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def train(model, data, out, *callbacks, kind=transformers.Trainer, arguments=transformers.TrainingArguments, **options):
    """The batches in the order in which they were collated, and the weights at the first step."""
    fixed = {"max_steps": 2, "per_device_train_batch_size": 16, "learning_rate": 0.01, "seed": 3, "use_cpu": True,
             "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}  # fmt: skip
    collate, start = Collate(), Start()
    trainer = kind(
        model=model, args=arguments(output_dir=str(out), **(fixed | options)), train_dataset=data, data_collator=collate,
        callbacks=[*callbacks, start],
    )  # fmt: skip
    trainer.train()
    return collate.batches, start.weights


def grouped():
    """The option of this version that makes batches of sequences of like lengths."""
    names = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    new = "train_sampling_strategy" in names
    return {"train_sampling_strategy": "group_by_length"} if new else {"group_by_length": True}


WAYS = {
    "rows": (text, {}),
    "a stream": (lambda: Stream(text()), {}),
    "grouped by length": (lambda: Uneven(input_ids=IDS, labels=IDS), grouped()),
    "accumulated": (text, {"gradient_accumulation_steps": 2}),
    "compiled": (text, {"torch_compile": True, "torch_compile_backend": "eager"}),
}


def ways():
    return [pytest.param(way, marks=pytest.mark.slow if way == "compiled" else ()) for way in WAYS]


@pytest.mark.parametrize("way", ways())
def test_weights_are_bit_for_bit_those_of_lsuv_on_the_first_batch(way, tmp_path):
    data, options = WAYS[way]
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    batches, start = train(gpt2(0), data(), tmp_path, LSUVCallback(generator=generators[0]), **options)
    plain, _ = train(gpt2(0), data(), tmp_path, **options)
    assert [b["input_ids"].tolist() for b in batches[1:]] == [b["input_ids"].tolist() for b in plain]
    by_hand = gpt2(0).train()
    report = lsuv_(by_hand, batches[1], generator=generators[1])
    assert sum(row.status == "scaled" for row in report.layers) == 4
    assert same(start, weights(by_hand))
    assert not same(start, weights(gpt2(0)))


@pytest.mark.parametrize("why", ["all layers are left", "the model is done"])
def test_run_with_a_callback_that_changes_nothing_is_bit_for_bit_one_without(why, tmp_path):
    def begun():
        model = gpt2()
        if why == "the model is done":
            train(model, text(), tmp_path, LSUVCallback(), learning_rate=0.0)
        return model

    plain, model = begun(), begun()
    train(plain, text(), tmp_path)
    cb = LSUVCallback(std={"*": "leave"}, orthonormal=False) if why == "all layers are left" else LSUVCallback()
    _, start = train(model, text(), tmp_path, cb)
    assert (cb.report is None) == (why == "the model is done")
    assert same(weights(model), weights(plain))
    assert not same(weights(model), start)


@pytest.mark.parametrize("stage", [1, 3])
def test_parameters_that_look_as_deepspeed_leaves_them_are_refused(stage, tmp_path):
    model = gpt2()
    for p in model.parameters():  # deepspeed is not installed here: see tests/engine/test_deepspeed.py
        setattr(p, "_hp_mapping" if stage == 1 else "_z3_optimizer", None)
    before = weights(model)
    with pytest.raises(
        LSUVError, match=r"DeepSpeed's ZeRO optimizer, whose first step would undo LSUV\. Initialise before"
    ):
        train(model, text(), tmp_path, LSUVCallback())
    assert same(before, weights(model))


def test_adapters_are_initialised_on_a_base_that_is_frozen_and_named(tmp_path):
    peft = need_package("peft")
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    model, cb = peft.get_peft_model(gpt2(0), config), LSUVCallback()
    before = dict(zip(dict(model.named_parameters()), weights(model), strict=True))
    _, start = train(model, text(), tmp_path, cb)
    found = {row.name: (row.status, row.reason) for row in cb.report.layers}
    block = "base_model.model.transformer.h.0"
    assert {name for name, (status, _) in found.items() if status == "scaled"} == {
        f"{block}.attn.c_attn.lora_A.default", f"{block}.mlp.c_fc.lora_A.default"
    }  # fmt: skip
    for layer in ("attn.c_attn", "mlp.c_fc"):
        assert found[f"{block}.{layer}.lora_B.default"] == ("left alone", ZERO)
        assert found[f"{block}.{layer}.base_layer"] == ("left alone", FROZEN)
    assert found[f"{block}.mlp.c_proj"] == ("left alone", FROZEN)
    changed = {name for (name, old), new in zip(before.items(), start, strict=True) if not torch.equal(old, new)}
    assert all("lora_A" in name for name in changed)
    assert len(changed) == 2


# Models of other fields, from a config


def t5():
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config), text()


def bart():
    config = transformers.BartConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config), text()


def vit():
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4,
        num_channels=1, num_labels=4,
    )  # fmt: skip
    data = Rows(pixel_values=torch.randn(48, 1, 16, 16), labels=torch.arange(48) % 4)
    return transformers.ViTForImageClassification(config), data


def wav2vec2():
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=32, conv_dim=(16, 16),
        conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, classifier_proj_size=16, num_labels=4, layerdrop=0.0,
    )  # fmt: skip
    data = Rows(input_values=torch.randn(48, 800), labels=torch.arange(48) % 4)
    return transformers.Wav2Vec2ForSequenceClassification(config), data


SEQ2SEQ = {"kind": transformers.Seq2SeqTrainer, "arguments": transformers.Seq2SeqTrainingArguments}
# of the weights that are scaled: how many, worked out from the config
MODELS = {
    t5: (4 + 2 + 8 + 2, SEQ2SEQ),  # q, k, v, o and wi, wo; in the decoder attention twice
    bart: (4 + 2 + 8 + 2, SEQ2SEQ),
    vit: (1 + 4 + 2, {}),  # patches, attention, mlp
    wav2vec2: (1 + 1 + 1 + 4 + 2 + 1, {}),  # the second conv, two projections, positions, attention, mlp
}


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_model_of_another_field_is_initialised(make, tmp_path):
    torch.manual_seed(1)
    model, data = make()
    count, options = MODELS[make]
    cb = LSUVCallback()
    train(model, data, tmp_path, cb, **options)
    assert cb.report.converged
    assert sum(row.status == "scaled" for row in cb.report.layers) == count
    assert all(row.reason for row in cb.report.layers if row.status == "left alone")
    named = {row.name for row in cb.report.layers}
    assert {n.removesuffix(".weight") for n, p in model.named_parameters() if p.ndim > 1 and ".para" not in n} <= named
