"""The slow adapter of a Trainer: the average by hand, and that of our own trainer on the same batches."""

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from peft import PeftModel
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

import mcanalysis as mc
from mcanalysis.errors import RunDirectoryError, UserError
from mcanalysis.integrations import ConsistencyMixin, ForgettingCallback, IloraCallback
from mcanalysis.integrations.adopted_model import adopt
from mcanalysis.integrations.consistency import replay_batch
from mcanalysis.models.encoding import IGNORED, EncodedExample, collate
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.strategy import Step, Totals

QUICK = {"max_new_tokens": 4, "num_test": 1}


class Watch(TrainerCallback):
    """The factors of the adapter after each step, as PEFT has them."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.seen.append({n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n})

    on_step_end = on_train_begin


def test_slow_is_the_average_by_hand(tmp_path, peft_model, make_trainer):
    """By itself: λ_k = min(1 − 1/(k+1), λ) over the factors, written beside the fast adapter; PEFT reads it."""
    model, watch = peft_model(), Watch()
    trainer = make_trainer(model, "zeta", tmp_path, more={"callbacks": [IloraCallback(ema_decay=0.7), watch]})
    trainer.train()
    start, *fast = watch.seen
    slow, at_three = {n: t.double() for n, t in start.items()}, {}
    for k, after in enumerate(fast, start=1):
        decay = min(1 - 1 / (k + 1), 0.7)
        slow = {n: decay * slow[n] + (1 - decay) * after[n].double() for n in slow}
        if k == 3:
            at_three = slow
    for folder, expected in ((tmp_path / "slow", slow), (tmp_path / "checkpoint-3" / "ilora" / "slow", at_three)):
        saved = load_file(folder / "adapter_model.safetensors")
        assert saved.keys() == {n.replace(".default", "") for n in expected}
        for name, tensor in expected.items():
            torch.testing.assert_close(saved[name.replace(".default", "")].double(), tensor, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        read = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(model.config.name_or_path), tmp_path / "slow"
        )
        ids = torch.tensor([[5, 6, 7]])
        assert not torch.equal(read(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("is_driven", [False, True])
def test_a_step_that_fp16_skips_is_not_averaged(is_driven, tmp_path, data, peft_model, make_trainer, monkeypatch):
    """A scaler of gradients leaves the adapter alone where they overflow, and is averaged once less for it."""
    ilora, seen = IloraCallback(ema_decay=0.7), []
    attached = ilora
    if is_driven:
        attached = ForgettingCallback(tmp_path / "run", "zeta", data, ilora=ilora, num_points=0, **QUICK)
    averaged = type(ilora.strategy).after_step
    monkeypatch.setattr(type(ilora.strategy), "after_step", lambda *args: (seen.append(1), averaged(*args)))
    trainer = make_trainer(peft_model(), "zeta", tmp_path / "out", more={"callbacks": [attached]}, max_steps=4)
    skips = iter([True, False, True, False])
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda _: False))

    class Skips(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            skipped = next(skips)
            monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda _: skipped))

    callbacks = trainer.callback_handler.callbacks
    callbacks[:] = [Skips(), *callbacks]
    trainer.train()
    assert len(seen) == 2


def test_slow_is_that_of_our_own_trainer(tmp_path, make_model, train_task, encode_examples, peft_model):
    """The same adapter to begin with, the same batches, the same optimiser: the same slow adapter to rounding."""
    ours, strategy = make_model(alpha=8.0, target_modules=("q_proj", "v_proj")), make_strategy("ilora", 0)
    user = peft_model()
    start = ours.point()
    with torch.no_grad():
        for name, parameter in user.named_parameters():
            if "lora_A" in name:
                parameter.copy_(start[name.removeprefix("base_model.model.").replace(".default", "")])
    strategy.begin(ours, 1)
    strategy.begin_task(ours, 0, ())
    trained = train_task(ours, strategy, encode_examples(12), num_steps=10, schedule="constant")
    batches = [collate(b.current, ours.tokenizer.pad_token_id) for b in trained.train_dataset]

    class OnTheirBatches(Trainer):
        def get_train_dataloader(self):
            rows = [
                {
                    "input_ids": b.input_ids,
                    "labels": b.labels,
                    "attention_mask": b.mask(),
                    "position_ids": b.position_ids,
                }
                for b in batches
            ]
            return DataLoader(rows, batch_size=1, collate_fn=lambda one: one[0])

    ilora = IloraCallback()
    args = TrainingArguments(
        str(tmp_path), max_steps=10, per_device_train_batch_size=4, learning_rate=3e-3, lr_scheduler_type="constant",
        use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    OnTheirBatches(user, args, train_dataset=batches, callbacks=[ilora]).train()
    for name, slow in strategy.slow_point.items():
        assert not torch.equal(slow, start[name])
        torch.testing.assert_close(ilora.strategy.slow_point[name], slow, rtol=1e-4, atol=1e-6)


class IloraTrainer(ConsistencyMixin, Trainer):
    pass


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"consistency_on": "logits", "consistency_weight": 0.5}])
def test_the_loss_is_that_of_the_strategy(accumulation, settings, tmp_path, peft_model, make_trainer, rows_of, data):
    """On the same rows, current and replayed ones together in one batch, as our own trainer has them."""
    model, ilora = peft_model(), IloraCallback(**settings)
    replay = rows_of("alpha")
    more = {"ilora": ilora, "replay_dataset": replay}
    how = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 3, "max_steps": 2}
    trainer = make_trainer(model, "zeta", tmp_path, kind=IloraTrainer, more=more, **how)
    slot = adopt(model)
    ilora.begin(slot)
    with torch.no_grad():
        for name, parameter in slot.parameters.items():  # away from slow, which stays where training began
            parameter.add_(0.05 if "lora_B" in name else 0.0)
    model.train()
    rows = rows_of("zeta")
    micro = [trainer.data_collator(rows[3 * i : 3 * i + 3]) for i in range(accumulation)]
    samples, number = trainer.get_batch_samples(iter(micro), accumulation, torch.device("cpu"))
    trainer.current_gradient_accumulation_steps = accumulation
    replayed = [example for batch in trainer._replay for example in _examples(batch)]
    assert len(replayed) == 3 * accumulation and len({e.prompt_ids for e in replayed}) == len(replayed)
    found = sum(float(trainer.compute_loss(model, s, num_items_in_batch=number).detach()) for s in samples)

    current = [EncodedExample(*_parts(row)) for row in rows[: 3 * accumulation]]
    known = {_parts(row) for row in replay}
    assert {(e.prompt_ids, e.answer_ids) for e in replayed} <= known
    totals = Totals(
        sum(len(e.answer_ids) for e in current), sum(len(e.answer_ids) for e in replayed), sum(map(len, replayed))
    )
    batch = collate([*current, *replayed], slot.tokenizer.pad_token_id)
    expected = float(ilora.strategy.loss(Step(model, slot, batch, len(current), totals)).detach())
    plain = float(ilora.strategy.loss(Step(model, slot, batch, len(current) + len(replayed), totals)).detach())
    assert found == pytest.approx(expected, rel=1e-4) and abs(expected - plain) > 1e-3
    trainer.train()


def test_two_processes_replay_as_one_would(tmp_path, peft_model, make_trainer, rows_of, monkeypatch):
    """The engine takes the mean of their gradients: it is that of one mean over all that is replayed."""
    model, ilora = peft_model(), IloraCallback()
    ilora.begin(adopt(model))
    more = {"ilora": ilora, "replay_dataset": rows_of("alpha")}
    trainer = make_trainer(model, "zeta", tmp_path, kind=IloraTrainer, more=more, per_device_train_batch_size=2)
    model.train()
    number, micro = {}, trainer.data_collator(rows_of("zeta")[:2])
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 2))
    monkeypatch.setattr(TrainingArguments, "process_index", property(lambda self: number["now"]))
    drawn = {}
    for number["now"] in (0, 1):
        drawn[number["now"]] = trainer._draw(1)
    counts = [
        [sum(int((b.labels[:, 1:] != IGNORED).sum()) for b in of), sum(int(b.mask().sum()) for b in of)]
        for of in drawn.values()
    ]
    assert counts[0] != counts[1]
    monkeypatch.setattr(trainer.accelerator, "gather", lambda own: torch.tensor(counts))
    own = make_trainer(model, "zeta", tmp_path / "plain").compute_loss(model, micro, num_items_in_batch=None)
    found = 0.0
    for number["now"] in (0, 1):
        trainer.get_batch_samples(iter([micro]), 1, torch.device("cpu"))
        trainer.current_gradient_accumulation_steps = 1
        found += float((trainer.compute_loss(model, micro, num_items_in_batch=None) - own / 2).detach()) / 2
    totals = Totals(1, *(sum(column) for column in zip(*counts, strict=True)))
    slot = ilora.averaged
    rows = [batch for of in drawn.values() for batch in of]
    expected = sum(float(ilora.strategy.loss(Step(model, slot, b, 0, totals)).detach()) for b in rows)
    assert found == pytest.approx(expected, rel=1e-4)


def _parts(row):
    answer = sum(label != IGNORED for label in row["labels"])
    return tuple(row["input_ids"][:-answer]), tuple(row["input_ids"][-answer:])


def _examples(batch):
    """The rows of a batch that is padded on the right."""
    found = []
    for ids, labels, mask in zip(batch.input_ids.tolist(), batch.labels.tolist(), batch.mask().tolist(), strict=True):
        length = sum(mask)
        answer = sum(label != IGNORED for label in labels)
        found.append(EncodedExample(tuple(ids[: length - answer]), tuple(ids[length - answer : length])))
    return found


@pytest.fixture
def train(tmp_path, data, peft_model, make_trainer):
    """train(name, model, task, ilora, before=…) -> the Trainer of a run of I-LoRA, trained unless told otherwise."""

    def make(name, model, task, ilora, **how):
        trainer = make_trainer(model, task, tmp_path / name / task)
        ForgettingCallback(tmp_path / name / "run", task, data, ilora=ilora, num_points=0, **QUICK).attach(trainer)
        if how.pop("now", True):
            trainer.train(**how)
        return trainer

    return make


@pytest.mark.parametrize("settings", [{}, {"reset_at_task": True}])
def test_a_run_of_ilora_goes_on_in_another_process_and_after_a_kill(
    settings, tmp_path, train, peft_model, killed_at, adapter_bytes
):
    """A fresh callback finds the average where the run left it, one after a kill that of the checkpoint."""
    model, ilora = peft_model(), IloraCallback(**settings)
    train("whole", model, "zeta", ilora)
    train("whole", model, "alpha", ilora)
    run = mc.load_run(tmp_path / "whole/run")
    assert run.learners == ["fast", "slow"] and run.answering_learner == "slow" and run.strategy == "ilora"
    assert run.config["strategy_settings"]["consistency_weight"] == 0.0
    assert torch.equal(run.minima[1].point["model.layers.0.self_attn.q_proj.lora_A.weight"],
                       ilora.strategy.slow["model.layers.0.self_attn.q_proj.lora_A.weight"])  # fmt: skip

    model = peft_model()
    train("killed", model, "zeta", IloraCallback(**settings))
    after_one = {k: v.clone() for k, v in model.state_dict().items()}
    killed_at(train("killed", model, "alpha", IloraCallback(**settings), now=False), 5)
    model.load_state_dict(after_one)
    train("killed", model, "alpha", IloraCallback(**settings), resume_from_checkpoint=True)
    whole, killed = (adapter_bytes(tmp_path / name / "run") for name in ("whole", "killed"))
    assert whole == killed and len(whole) == 4


class SlowAtStart(TrainerCallback):
    """How far slow is from fast when a training begins."""

    def __init__(self, ilora):
        self.ilora, self.found = ilora, []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        fast = self.ilora.averaged.point()
        self.found.append(max(float((t - fast[n]).abs().max()) for n, t in self.ilora.strategy.slow.items()))


@pytest.mark.parametrize("reset", [False, True])
def test_by_itself_too_it_begins_anew_with_each_training_where_it_is_told_to(tmp_path, peft_model, make_trainer, reset):
    model, ilora = peft_model(), IloraCallback(reset_at_task=reset)
    watch = SlowAtStart(ilora)
    for task in ("zeta", "alpha"):
        make_trainer(model, task, tmp_path / task, more={"callbacks": [ilora, watch]}).train()
    assert watch.found[0] == 0 and (watch.found[1] == 0) == reset


def test_modules_of_several_ranks_are_averaged_and_saved(tmp_path, peft_model, make_trainer):
    model, ilora = peft_model(rank_pattern={"q_proj": 2}), IloraCallback()
    make_trainer(model, "zeta", tmp_path, more={"callbacks": [ilora]}).train()
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model.config.name_or_path), tmp_path / "slow")
    assert {p.shape[0] for n, p in read.named_parameters() if "lora_A" in n} == {2, 4}
    saved = mc.load_adapter(tmp_path / "slow").point
    for name, tensor in ilora.strategy.slow.items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_task_that_is_killed_as_it_ends_is_trained_again(tmp_path, train, peft_model, adapter_bytes, monkeypatch):
    """Twice, after the new average was kept and before the run was called finished, with no checkpoint of a trainer."""

    def killed(directory):
        raise KeyboardInterrupt

    for name in ("whole", "killed"):
        model = peft_model()
        train(name, model, "zeta", IloraCallback())
        after_one = {k: v.clone() for k, v in model.state_dict().items()}
        for _ in range(2 if name == "killed" else 0):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr("mcanalysis.integrations.forgetting.mark_finished", killed)
                train(name, model, "alpha", IloraCallback())
            model.load_state_dict(after_one)
        train(name, model, "alpha", IloraCallback())
    whole, again = (adapter_bytes(tmp_path / name / "run") for name in ("whole", "killed"))
    assert whole == again and len(whole) == 4


def test_what_cannot_be_averaged_is_refused(tmp_path, peft_model, make_trainer):
    with pytest.raises(UserError, match="Unknown setting of ilora 'decay'"):
        IloraCallback(decay=0.5)
    trainer = make_trainer(peft_model(), "zeta", tmp_path, max_steps=4)
    trainer.train()  # without the callback
    given, more = IloraCallback(), {"replay_dataset": trainer.train_dataset}
    ForgettingCallback(tmp_path / "run", "zeta", tmp_path, ilora=given)
    for lost in (
        make_trainer(peft_model(), "zeta", tmp_path / "a", more={"callbacks": [given]}),
        make_trainer(peft_model(), "zeta", tmp_path / "b", kind=IloraTrainer, more={"ilora": IloraCallback(), **more}),
    ):
        with pytest.raises(UserError, match="got neither"):
            lost.train()
    trainer.add_callback(IloraCallback())
    trainer.args.max_steps = 6
    with pytest.raises(RunDirectoryError, match=r"slow adapter before task 1 in .*checkpoint-4.*got none"):
        trainer.train(resume_from_checkpoint=True)
    packed = {"input_ids": torch.ones(1, 4), "labels": torch.ones(1, 4), "position_ids": torch.ones(1, 4)}
    with pytest.raises(UserError, match="not packed and with padding"):
        replay_batch(packed)


def test_a_second_run_with_the_same_callback_starts_anew(tmp_path, peft_model, make_trainer, data):
    shared, found = IloraCallback(), []
    for name, ilora in (("first", shared), ("second", shared), ("fresh", IloraCallback())):
        trainer = make_trainer(peft_model(), "zeta", tmp_path / name / "zeta")
        callback = ForgettingCallback(tmp_path / name / "run", "zeta", data, ilora=ilora, num_points=0, **QUICK)
        callback.attach(trainer)
        trainer.train()
        found.append(mc.load_adapter(tmp_path / name / "run" / "minima" / "1-zeta" / "slow").point)
    for point in found[:2]:
        for name, tensor in point.items():
            torch.testing.assert_close(tensor, found[2][name], rtol=0, atol=0)


def test_the_best_model_at_the_end_is_refused(tmp_path, peft_model, make_trainer, data):
    for callback in (IloraCallback(), ForgettingCallback(tmp_path / "run", "zeta", data, num_points=0, **QUICK)):
        trainer = make_trainer(peft_model(), "zeta", tmp_path / "out", more={"callbacks": [callback]})
        trainer.args.load_best_model_at_end = True
        with pytest.raises(UserError, match="load_best_model_at_end=False, got True"):
            trainer.train()
    assert not (tmp_path / "run").exists()
