"""Tasks on disk, and a plain Trainer of transformers that trains a PEFT model of the tiny base on one of them."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

TASKS = ("zeta", "alpha")


@pytest.fixture(scope="session")
def data(tmp_path_factory, make_tasks):
    """A folder with two tasks in our form; what is tested was among what is trained on, so that answers are learned."""
    folder = tmp_path_factory.mktemp("data")
    for task in make_tasks(TASKS, num_train=8, num_test=4):
        (folder / task.task.name).mkdir()
        for split, examples in {**task.splits, "test": task.splits["train"][:4]}.items():
            rows = [{"prompt": e.prompt, "answer": e.answer} for e in examples]
            (folder / task.task.name / f"{split}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="session")
def peft_model(base_folder):
    """peft_model(**LoraConfig) -> a fresh PEFT model on the tiny base, as users make one."""

    def make(**settings):
        base = AutoModelForCausalLM.from_pretrained(base_folder)
        usual = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return get_peft_model(base, LoraConfig(**{**usual, **settings}))

    return make


@pytest.fixture(scope="session")
def rows_of(data, tokenizer):
    """rows_of(task) -> its train examples as a Trainer's collator takes them, prompts without labels."""

    def make(task):
        rows = []
        for row in json.loads((data / task / "train.json").read_text()):
            prompt, answer = (tokenizer(row[k], add_special_tokens=False)["input_ids"] for k in ("prompt", "answer"))
            answer = [*answer, tokenizer.eos_token_id]
            rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
        return rows

    return make


@pytest.fixture(scope="session")
def make_trainer(rows_of, tokenizer):
    """make_trainer(model, task, folder, kind=Trainer, more={}, **TrainingArguments) -> a Trainer of eight steps."""

    def make(model, task, folder, kind=Trainer, more=None, **settings):
        usual = {"max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 3e-2, "save_steps": 3}
        usual |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 4}
        args = TrainingArguments(str(folder), **{**usual, **settings})
        collator = DataCollatorForSeq2Seq(tokenizer)
        return kind(model, args, train_dataset=rows_of(task), data_collator=collator, **(more or {}))

    return make


class Tracker(TrainerCallback):
    """Whatever a Trainer logs to."""

    def __init__(self):
        self.logged = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logged.append({**logs, "step": state.global_step})


class Killed(Exception):  # noqa: N818 (no error: what ends a training)
    """Stands for the end of a process."""


class KillAt(TrainerCallback):
    """Ends a training after so many steps."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


@pytest.fixture(scope="session")
def tracker():
    return Tracker


@pytest.fixture(scope="session")
def killed_at():
    """killed_at(trainer, step): train until the process is killed, before the step after this one."""

    def train(trainer, step, **how):
        trainer.add_callback(KillAt(step))
        with pytest.raises(Killed):
            trainer.train(**how)

    return train
