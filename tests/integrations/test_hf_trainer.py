"""LSUVCallback in the Hugging Face Trainer: a model from a config is initialised, and the run is otherwise what it was."""

from __future__ import annotations

import pytest
import torch
from programs import run
from required import need_package
from signatures import arguments, of_a_callback
from torch.utils.data import Dataset

from lsuvcb import lsuv_

need_package("transformers")
need_package("accelerate")
import hf_trainer_run  # noqa: E402
import transformers  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402

from lsuvcb.integrations.transformers import LSUVCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own deprecations


@pytest.fixture(autouse=True)
def accelerate_afresh():
    """One process has one precision, which a run leaves behind."""
    yield
    AcceleratorState._reset_state(True)


class Tokens(Dataset):
    """Sequences to continue; notes in which order they are read."""

    def __init__(self):
        self.ids = torch.randint(0, 64, (48, 12), generator=torch.Generator().manual_seed(0))
        self.read: list[int] = []

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        self.read.append(i)
        return {"input_ids": self.ids[i], "labels": self.ids[i], "attention_mask": torch.ones(12, dtype=torch.long)}


def gpt2():
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


class Draws(transformers.TrainerCallback):
    """A random number at each step: what the run's dropout would draw."""

    def __init__(self):
        self.seen: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        generator = torch.Generator().set_state(torch.get_rng_state())
        self.seen.append(float(torch.rand((), generator=generator)))


def train(model, out, *callbacks, resume=None, **options):
    fixed = {"max_steps": 4, "per_device_train_batch_size": 16, "learning_rate": 0.0, "seed": 3, "use_cpu": True,
             "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}  # fmt: skip
    args = transformers.TrainingArguments(output_dir=str(out), **(fixed | options))
    data, draws = Tokens(), Draws()
    trainer = transformers.Trainer(model=model, args=args, train_dataset=data, callbacks=[*callbacks, draws])
    trainer.train(resume_from_checkpoint=resume)
    return data, draws


def test_model_is_initialised_on_the_first_training_batch(tmp_path, capsys):
    model, cb = gpt2(), LSUVCallback(recipe="paper", orthonormal=False)
    data, _ = train(model, tmp_path, cb)
    assert cb.report.converged
    assert sum(row.status == "scaled" for row in cb.report.layers) == 8
    assert "LSUV: 8 of 8 layers at std 1" in capsys.readouterr().out
    assert data.read[:16] == data.read[16:32]
    by_hand, ids = gpt2(), data.ids[data.read[:16]]
    by_hand.train()
    transformers.set_seed(3)
    lsuv_(by_hand, {"input_ids": ids, "labels": ids}, orthonormal=False)
    weight = model.transformer.h[0].attn.c_attn.weight
    assert not torch.allclose(weight, gpt2().transformer.h[0].attn.c_attn.weight, rtol=0.1)
    assert torch.allclose(weight, by_hand.transformer.h[0].attn.c_attn.weight, rtol=0.1)  # dropout masks differ


def test_run_sees_the_batches_and_draws_that_it_would_have_seen(tmp_path):
    plain, plain_draws = train(gpt2(), tmp_path)
    seen, draws = train(gpt2(), tmp_path, LSUVCallback())
    assert seen.read[16:] == plain.read  # the callback read one batch first
    assert draws.seen == plain_draws.seen


def test_modes_and_gradients_are_as_before(tmp_path):
    class After(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.training = {module.training for module in model.modules()}
            self.grads = {p.grad for p in model.parameters()}

    plain, after = After(), After()
    train(gpt2().eval(), tmp_path, plain)
    train(gpt2().eval(), tmp_path, LSUVCallback(), after)
    assert after.training == plain.training
    assert after.grads == plain.grads == {None}


def test_second_run_and_resumed_run_are_left_alone(tmp_path):
    model, cb = gpt2(), LSUVCallback()
    train(model, tmp_path, cb, save_strategy="steps", save_steps=2, max_steps=2)
    first = cb.report
    train(model, tmp_path, cb)
    assert cb.report is first
    resumed, other = LSUVCallback(force=True), gpt2()
    train(other, tmp_path, resumed, resume=str(tmp_path / "checkpoint-2"))
    assert resumed.report is None
    later = LSUVCallback()
    train(other, tmp_path, later)
    assert later.report is None  # its weights are trained
    again = LSUVCallback(force=True)
    train(model, tmp_path, again)
    assert again.report is not None


def test_named_batch_precision_and_arguments_are_used(tmp_path):
    seen = []

    def forward(model, batch):
        seen.append((batch["input_ids"].shape, model.training))
        return model(**batch)

    ids = torch.randint(0, 64, (5, 7))
    cb = LSUVCallback(batch={"input_ids": ids, "labels": ids}, forward=forward, verify=False, std=0.5)
    train(gpt2(), tmp_path, cb)
    assert seen == [((5, 7), True)]
    assert (cb.report.passes, cb.report.std) == (1, 0.5)


def test_signature_shows_the_arguments_of_lsuv_with_their_defaults():
    assert arguments(LSUVCallback) == of_a_callback(lsuv_, logs=True)


def test_pass_runs_under_the_precision_of_the_run(tmp_path):
    model, dtypes = gpt2(), []
    model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda module, args, y: dtypes.append(y.dtype))
    cb = LSUVCallback()
    train(model, tmp_path, cb, bf16=True)
    assert set(dtypes) == {torch.bfloat16}
    assert cb.report.converged


def test_ranks_hold_equal_weights_for_the_batch_of_both(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
    ranks, printed = run(hf_trainer_run, tmp_path, *launcher)
    assert printed.count("LSUV: 2 of 2 layers at std 1") == 1
    assert not torch.equal(ranks[0]["x"], ranks[1]["x"])
    alone = hf_trainer_run.Plain()
    lsuv_(
        alone,
        torch.cat([rank["x"] for rank in ranks]),
        recipe="paper",
        orthonormal=False,
        forward=lambda m, x: m.net(x),
    )
    for name, values in alone.state_dict().items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
        assert torch.allclose(ranks[0]["weights"][name], values, rtol=1e-4, atol=1e-6)


# Once, before the first real step; what is not done is said


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def said(capsys):
    return lambda: [line for line in capsys.readouterr().out.splitlines() if line.startswith("LSUV")]


def test_each_trial_of_a_search_has_a_model_that_is_initialised(said, tmp_path):
    need_package("optuna")
    cb, data = LSUVCallback(recipe="paper"), Tokens()
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=16, seed=3, use_cpu=True, report_to=[],
        disable_tqdm=True, save_strategy="no", eval_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(
        model_init=gpt2, args=args, train_dataset=data, eval_dataset=data, callbacks=[cb], compute_metrics=None
    )
    best = trainer.hyperparameter_search(
        backend="optuna", n_trials=2, direction="minimize",
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)},
    )  # fmt: skip
    assert best.objective > 0
    assert [line[:30] for line in said()] == ["LSUV: 8 of 8 layers at std 1; "] * 2
    trainer.train()
    assert len(said()) == 1


@pytest.mark.parametrize("where", ["everywhere", "in training"])
def test_smaller_batch_is_tried_on_a_model_that_is_initialised_once(where, said, tmp_path):
    class Large(transformers.GPT2LMHeadModel):
        def forward(self, input_ids=None, labels=None, **kw):
            if len(input_ids) > 8 and (where == "everywhere" or torch.is_grad_enabled()):
                raise RuntimeError("CUDA out of memory. (not really)")
            return super().forward(input_ids=input_ids, labels=labels, **kw)

    model, cb = Large(gpt2().config), LSUVCallback(recipe="paper")
    train(model, tmp_path, cb, auto_find_batch_size=True)
    assert cb.report.converged
    lines = said()
    assert lines[0].startswith("LSUV: 8 of 8 layers at std 1")
    assert [line[:16] for line in lines[1:]] == ["LSUV: left alone"] * (len(lines) - 1)


@pytest.mark.parametrize("way", ["loaded", "copied"])
def test_pretrained_model_is_left_alone(way, said, tmp_path):
    import copy

    gpt2().save_pretrained(tmp_path / "hub")
    model, cb = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hub"), LSUVCallback()
    model = copy.deepcopy(model) if way == "copied" else model
    before = weights(model)
    train(model, tmp_path, cb)
    assert same(before, weights(model))
    assert cb.report is None
    (line,) = said()
    assert line.startswith("LSUV: left alone: this model is trained, it seems (it was loaded from ")
    assert line.endswith("LSUVCallback(force=True) does it anew.")
    train(model, tmp_path, LSUVCallback(force=True))
    assert not same(before, weights(model))


def test_model_from_the_config_of_a_pretrained_one_is_a_new_one(said, tmp_path):
    gpt2().save_pretrained(tmp_path / "hub")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hub")
    model, cb = transformers.AutoModelForCausalLM.from_config(config), LSUVCallback()
    assert model.name_or_path
    train(model, tmp_path, cb)
    assert cb.report.converged


def test_state_dict_with_norms_is_left_alone(said, tmp_path):
    trained, model = gpt2(), gpt2()
    train(trained, tmp_path, learning_rate=0.01)
    model.load_state_dict(trained.state_dict())
    before = weights(model)
    train(model, tmp_path, LSUVCallback())
    assert same(before, weights(model))
    assert "'transformer.h.0.ln_1' (LayerNorm) has scales that differ" in said()[0]


def test_second_run_other_arguments_and_a_resumed_run_are_left_alone_in_one_line_each(said, tmp_path):
    model, cb, other = gpt2(), LSUVCallback(), LSUVCallback(std=0.5)
    train(model, tmp_path, cb, save_strategy="steps", save_steps=2, max_steps=2, learning_rate=0.01)
    train(model, tmp_path, cb)
    train(model, tmp_path, other)
    first, second, third = said()
    assert first.startswith("LSUV: 8 of 8 layers")
    assert second.startswith("LSUV: left alone: LSUVCallback() initialised this model, whose weights were trained")
    assert third.endswith("LSUVCallback(force=True, std=0.5) does it anew.")
    assert other.report is None
    train(gpt2(), tmp_path, LSUVCallback(), resume=str(tmp_path / "checkpoint-2"))
    assert said() == [
        "LSUV: left alone: this run resumes from a checkpoint, whose weights are trained; begin a run without one to initialise."
    ]


def test_two_callbacks_for_different_layers_both_run(said, tmp_path):
    mlp = LSUVCallback(layers=["transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"])
    rest = LSUVCallback(std=0.5)
    train(gpt2(), tmp_path, mlp, rest)
    scaled = [sum(row.status == "scaled" for row in cb.report.layers) for cb in (mlp, rest)]
    assert scaled == [2, 6]
    assert len(said()) == 2
