"""The Trainer of Hugging Face Transformers with the callback: the plain loop, bit for bit, whole or resumed."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from strongreg import L1, AlwaysOpen, CoherenceGate, Refit, Regularizer
from strongreg.integrations.transformers import RegularizerCallback

STEPS, EPOCH_STEPS, STOPS = 24, 8, (8, 13, 22)
OPTIONS = {"gate": CoherenceGate(0.875), "schedule": Refit(start=20)}
PENALTY = L1(0.3)
METRICS = {"strongreg/open", "strongreg/coherence", "strongreg/compression"}


def network() -> BertForSequenceClassification:
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    config = BertConfig(vocab_size=8, max_position_embeddings=6, num_labels=4, hidden_dropout_prob=0.0, **size)
    config.attention_probs_dropout_prob = 0.0
    return BertForSequenceClassification(config)


def sentences(count: int) -> list[dict[str, torch.Tensor]]:
    """Six tokens each; the first one says the class."""
    words = torch.randint(8, (count, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": line, "labels": line[0] % 4} for line in words]


def trainer(folder, model=None, callbacks=(), accumulate=1, **arguments) -> Trainer:
    """A Trainer that takes STEPS steps, and keeps the batches it has seen."""
    arguments = {
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "optim": "adamw_torch",
        "save_strategy": "no",
        "logging_steps": 4,
        **arguments,
    }
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=8, gradient_accumulation_steps=accumulate, **quiet, **arguments
    )
    model = network() if model is None else model
    made = Trainer(model, args, train_dataset=sentences(8 * EPOCH_STEPS * accumulate), callbacks=list(callbacks))
    made.seen = []
    model.register_forward_pre_hook(lambda _, a, kw: made.seen.append(dict(kw)), with_kwargs=True)
    return made


def plain_loop(batches, accumulate=1, bf16=False, max_norm=1.0) -> tuple[torch.nn.Module, Regularizer]:
    """What the Trainer does, by hand: AdamW, linear decay, clipping, the two lines."""
    model = network().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=STEPS)
    reg = Regularizer(model, PENALTY, **OPTIONS).attach(optimizer)
    for step in range(STEPS):
        for batch in batches[step * accumulate : (step + 1) * accumulate]:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**batch).loss  # the Trainer leaves it to the model to divide by num_items_in_batch
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model, reg


def assert_same(first, second, reg, other):
    """Weights, decisions and what was measured, bit for bit; and the gate was open, and closed, before the refit."""
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    for quantity in ("coherence", "open", "gradient_norm", "penalty_norm", "weight_norm"):
        assert (reg.history[quantity] == other.history[quantity]).all(), quantity
    assert reg.num_steps == other.num_steps == STEPS
    assert {0.0, 1.0} <= set(reg.history["open"][:20])
    assert reg.summary() == other.summary()
    assert reg.summary().total.num_zeros > 0


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_the_result_is_that_of_the_plain_loop(tmp_path, accumulate, bf16):
    callback = RegularizerCallback(PENALTY, **OPTIONS)
    host = trainer(tmp_path, callbacks=[callback], accumulate=accumulate, bf16=bf16)
    host.train()
    model, reg = plain_loop(host.seen, accumulate, bf16)
    assert_same(host.model, model, callback.regularizer, reg)


class Save(TrainerCallback):
    """Checkpoints at the steps of STOPS."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in STOPS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with a checkpoint at each of STOPS: its folder, network and Regularizer."""
    folder, callback = tmp_path_factory.mktemp("whole"), RegularizerCallback(PENALTY, **OPTIONS)
    host = trainer(folder, callbacks=[callback, Save()])
    host.train()
    return folder, host.model, callback.regularizer


@pytest.mark.parametrize("steps", STOPS, ids=["after an epoch", "within an epoch", "within the refit"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, whole, steps):
    folder, model, reg = whole
    torch.manual_seed(1)
    callback = RegularizerCallback(PENALTY, **OPTIONS)
    host = trainer(tmp_path, callbacks=[callback])
    host.train(resume_from_checkpoint=str(folder / f"checkpoint-{steps}"))
    assert len(host.seen) == STEPS - steps
    assert_same(model, host.model, reg, callback.regularizer)


def test_a_run_that_failed_goes_on_in_the_same_trainer(tmp_path, whole):
    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 14 and not hasattr(self, "done"):
                self.done = True
                raise KeyboardInterrupt

    callback = RegularizerCallback(PENALTY, **OPTIONS)
    host = trainer(tmp_path, callbacks=[callback, Save(), Stop()])
    with pytest.raises(KeyboardInterrupt):
        host.train()
    host.train(resume_from_checkpoint=True)
    assert_same(whole[1], host.model, whole[2], callback.regularizer)


def test_a_second_training_begins_anew_and_leaves_one_regularizer(tmp_path):
    callback = RegularizerCallback(PENALTY, **OPTIONS)
    host = trainer(tmp_path, callbacks=[callback])
    host.train()
    first = callback.regularizer
    host.train()
    assert (first.num_steps, callback.regularizer.num_steps) == (STEPS, STEPS)
    assert callback.regularizer is not first
    assert "not attached" in repr(first)


def test_an_optimizer_of_ones_own_needs_no_callback_and_resumes(tmp_path):
    def made(folder, *callbacks):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
        reg = Regularizer(model, PENALTY, **OPTIONS).attach(optimizer)
        host = trainer(folder, model=model, callbacks=callbacks)
        host.optimizer = optimizer
        return host, reg

    host, reg = made(tmp_path, Save())
    host.train()
    model, other = plain_loop(host.seen)
    assert_same(host.model, model, reg, other)
    resumed, again = made(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))
    assert_same(resumed.model, model, again, other)


def test_what_is_logged(tmp_path):
    printed = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            printed.append(dict(logs))

    callback = RegularizerCallback(PENALTY, **OPTIONS)
    host = trainer(tmp_path, callbacks=[callback, Tracker()], save_strategy="steps", save_steps=STEPS)
    host.train()
    logs = [log for log in host.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [4, 8, 12, 16, 20, 24]
    history = callback.regularizer.history
    for log, before in zip(logs, printed, strict=False):
        since = slice(log["step"] - 4, log["step"])
        assert {name: before[name] for name in METRICS} == {name: log[name] for name in METRICS}
        assert log["strongreg/open"] == pytest.approx(history["open"][since].mean(), rel=1e-6)
        assert log["strongreg/coherence"] == pytest.approx(history["coherence"][since].mean(), rel=1e-6)
    assert logs[-1]["strongreg/compression"] == callback.regularizer.summary().total.compression > 1
    assert len({log["strongreg/open"] for log in logs}) > 2
    assert not METRICS & set(host.state.log_history[-1]), "the last log is that of the whole training"
    saved = json.loads((tmp_path / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    assert set(saved["log_history"][-1]) >= METRICS


def test_a_tracker_of_the_trainer_sees_the_metrics_when_the_callback_comes_first(tmp_path):
    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(set(logs))

    host = trainer(tmp_path, callbacks=[Tracker(), RegularizerCallback(PENALTY, **OPTIONS)], max_steps=4)
    host.callback_handler.callbacks.insert(0, host.pop_callback(RegularizerCallback))
    host.train()
    assert seen[0] >= METRICS


def test_without_a_history_only_the_compression_is_logged(tmp_path):
    host = trainer(tmp_path, callbacks=[RegularizerCallback(PENALTY, history_every=0)], max_steps=4)
    host.train()
    assert METRICS & set(host.state.log_history[0]) == {"strongreg/compression"}


def test_a_checkpoint_made_without_it_is_told(tmp_path):
    trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=4).train()
    callback = RegularizerCallback(PENALTY, **OPTIONS)
    host = trainer(tmp_path, callbacks=[callback], max_steps=8)
    with pytest.warns(UserWarning, match=r"the checkpoint of step 4 has no state of a Regularizer"):
        host.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert callback.regularizer.num_steps == 4


def test_a_state_that_training_without_it_has_left_behind_is_not_adopted(tmp_path):
    def train(steps, *callbacks, since=None):
        host = trainer(tmp_path, callbacks=callbacks, max_steps=steps, save_strategy="steps", save_steps=4)
        host.train(resume_from_checkpoint=None if since is None else str(tmp_path / f"checkpoint-{since}"))

    train(4, RegularizerCallback(PENALTY, **OPTIONS))
    train(8, since=4)
    callback = RegularizerCallback(PENALTY, **OPTIONS)
    with pytest.warns(UserWarning, match=r"of step 8 has a Regularizer's state of step 4, .* begins anew"):
        train(12, callback, since=8)
    assert callback.regularizer.num_steps == 4


class SkipsSteps(TrainerCallback):
    """As with float16 and a scaler, the Trainer counts steps that the optimizer does not take."""

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        optimizer.zero_grad(set_to_none=True)
        step, optimizer.optimizer.step = optimizer.optimizer.step, lambda *args, **kwargs: None
        self.undo = lambda: setattr(optimizer.optimizer, "step", step)

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.undo()


def test_steps_that_the_optimizer_skips_do_not_make_a_state_out_of_date(tmp_path):
    first, second = RegularizerCallback(PENALTY, **OPTIONS), RegularizerCallback(PENALTY, **OPTIONS)
    trainer(tmp_path, callbacks=[first, SkipsSteps()], max_steps=4, save_strategy="steps", save_steps=4).train()
    assert first.regularizer.num_steps == 0
    host = trainer(tmp_path, callbacks=[second], max_steps=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert second.regularizer.num_steps == 4


def test_two_penalties_with_two_gates_on_one_network_resume_each_by_its_key(tmp_path):
    def callbacks():
        return [
            RegularizerCallback({"bert.encoder.*.weight": PENALTY, "*": None}, **OPTIONS),
            RegularizerCallback({"classifier.weight": L1(0.1), "*": None}, gate=AlwaysOpen(), key="head"),
        ]

    whole, resumed = callbacks(), callbacks()
    host = trainer(tmp_path, callbacks=[*whole, Save()])
    host.train()
    again = trainer(tmp_path, callbacks=resumed)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))
    for name, weight in host.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours.regularizer.summary() == theirs.regularizer.summary()
    assert {"strongreg/open", "head/open"} <= set(again.state.log_history[-2])


def test_the_logs_are_json_when_no_weight_is_left(tmp_path):
    callback = RegularizerCallback(L1(1e3), gate=AlwaysOpen(), warn_of_collapse=False)
    trainer(tmp_path, callbacks=[callback], max_steps=4, save_strategy="steps", save_steps=4).train()
    assert callback.regularizer.summary().total.compression == math.inf
    text = (tmp_path / "checkpoint-4" / "trainer_state.json").read_text()
    assert "strongreg/compression" in text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_checkpoint_made_with_it_trains_on_without_it(tmp_path):
    trainer(
        tmp_path, callbacks=[RegularizerCallback(PENALTY)], max_steps=4, save_strategy="steps", save_steps=4
    ).train()
    host = trainer(tmp_path, max_steps=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert host.state.global_step == 8


def test_an_unknown_option_is_told_at_once():
    with pytest.raises(TypeError, match=r"gates=.*Regularizer has no such argument; it has .*gate"):
        RegularizerCallback(PENALTY, gates=CoherenceGate(0.7))
