"""A Trainer with the callback leaves a run directory whose numbers are those of PEFT and transformers by hand."""

import json
import shutil

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

import mcanalysis as mc
from mcanalysis.errors import RunDirectoryError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.integrations import ForgettingCallback, IloraCallback
from mcanalysis.models.encoding import encode_all
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.runs.snapshots import snapshot_files
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.tasks.task import Example

QUICK = {"max_new_tokens": 4, "num_test": 1}
TEXT = "apple river seven green\n\nquiet paper north silver stone\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data, peft_model, make_trainer, tracker):
    """(run directory, trackers of the two trainings, trainers): two tasks, one adapter, general text."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "general").mkdir()
    (folder / "general" / "prose.txt").write_text(TEXT)
    model, trackers, trainers = peft_model(r=8, lora_alpha=16, target_modules="all-linear"), [], []
    for task in ("zeta", "alpha"):
        trackers.append(tracker())
        settings = {"max_steps": 24, "save_steps": 10, "logging_steps": 12}
        trainer = make_trainer(model, task, folder / task, more={"callbacks": [trackers[-1]]}, **settings)
        general = str(folder / "general")
        ForgettingCallback(folder / "run", task, data, general=general, max_new_tokens=6).attach(trainer)
        trainer.train()
        trainers.append(trainer)
    return folder / "run", trackers, trainers


@pytest.fixture(scope="module")
def examples(data):
    """examples(task) -> its test examples."""
    return lambda task: [Example(**row) for row in json.loads((data / task / "test.json").read_text())]


@pytest.fixture(scope="module")
def by_hand(examples, tokenizer, alone):
    """by_hand(model, task) -> (loss in nats per target token, share of exact answers) by transformers alone."""

    @torch.no_grad()
    def measure(model, task):
        encoded, _ = encode_all(examples(task), tokenizer, 128)
        nll = sum(float(alone(model, e)[0]) for e in encoded)
        right = 0
        for example, e in zip(examples(task), encoded, strict=True):
            ids = torch.tensor([e.prompt_ids])
            mask = torch.ones_like(ids)
            written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
            right += tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip() == example.answer
        return nll / sum(len(e.answer_ids) for e in encoded), right / len(encoded)

    return measure


def test_minima_and_matrix_are_those_of_peft_and_transformers(trained, base_folder, by_hand):
    run = mc.load_run(trained[0])
    assert [m.label for m in run.minima] == ["1-zeta", "2-alpha"] and run.learners == ["fast"]
    expected = []
    for k in range(3):
        base = AutoModelForCausalLM.from_pretrained(base_folder)
        if k:
            base = PeftModel.from_pretrained(base, run.minima[k - 1].directory).merge_and_unload()
        expected.append([by_hand(base.eval(), task)[1] for task in run.task_names])
    assert run.accuracy_matrix[run.task_names].to_numpy().tolist() == expected
    assert expected[1][0] > expected[0][0]  # something was learned, so that this says something
    assert run.config["training"]["num_steps"] == {"zeta": 24, "alpha": 24}
    assert run.metrics["average_accuracy"] == pytest.approx(sum(expected[2]) / 2)


def test_what_is_scored_at_saves_reaches_trackers_and_files(trained, plain_model_at, by_hand):
    """The adapter at step 20 of the second task is that of the Trainer's own checkpoint."""
    folder, trackers, trainers = trained
    saved = folder.parent / "alpha" / "checkpoint-20"
    (logged,) = [entry for entry in trackers[1].logged if entry["step"] == 20]
    assert logged in trainers[1].state.log_history
    model = plain_model_at(mc.load_adapter(saved).point)
    for task in ("zeta", "alpha"):
        loss, score = by_hand(model, task)
        assert logged[f"forgetting/{task}/loss"] == pytest.approx(loss, rel=1e-4)
        assert logged[f"forgetting/{task}/score"] == score
    assert logged["general/prose/loss"] > 0 and "general/prose/score" not in logged
    table = pd.read_csv(folder / "tables" / "saves.csv")
    assert table.groupby("minimum", sort=False).step.unique().map(list).to_dict() == {
        "1-zeta": [10, 20, 24], "2-alpha": [10, 20, 24]
    }  # fmt: skip
    row = table[(table.minimum == "2-alpha") & (table.step == 20) & (table.task == "zeta")].iloc[0]
    assert row.loss == logged["forgetting/zeta/loss"]
    assert [*snapshot_files(folder, "2-alpha", "fast")] == [0, 10, 20, 24]


def test_the_path_to_the_last_minimum(trained, plain_model_at, by_hand):
    """ΔW of the ends, weighed by hand; the barrier is the largest rise above the chord."""
    folder, trackers, _ = trained
    first, last = (minimum.point for minimum in mc.load_run(folder).minima)

    def loss(t):
        model = plain_model_at({k: v * (1 - t) if "lora_B" in k else v for k, v in first.items()})
        other = {k: v * t if "lora_B" in k else v for k, v in last.items()}
        with torch.no_grad():
            for name, weight in model.named_parameters():
                module = name.removesuffix(".weight")
                if f"{module}.lora_A.weight" in other:
                    weight += other[f"{module}.lora_B.weight"] @ other[f"{module}.lora_A.weight"]
        return by_hand(model, "zeta")[0]

    ts = [0, 0.25, 0.5, 0.75, 1]
    losses = [loss(t) for t in ts]
    table = pd.read_csv(folder / "tables" / "profiles.csv")
    found = table[(table.task == "zeta") & (table.split == "test")]
    assert found.t.tolist() == ts and found.loss.tolist() == pytest.approx(losses, rel=1e-4)
    barrier = max(value - (1 - t) * losses[0] - t * losses[-1] for t, value in zip(ts, losses, strict=True))
    assert trackers[1].logged[-1]["barrier/zeta"] == pytest.approx(max(barrier, 0), abs=1e-4)
    assert not [name for name in trackers[0].logged[-1] if name.startswith("barrier")]


def test_connectivity_reads_it_and_measures_nothing_twice(trained, script, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "measure", None)
        code, out, err = script(
            "connectivity", "--run", trained[0], "--paths", "linear-delta", "--num-points", 5, "--output-dir", tmp_path
        )
    assert code == 0 and "1-zeta → 2-alpha" in out, err


@pytest.mark.slow
def test_others_of_our_analyses_read_it(trained, script, tmp_path):
    code, out, err = script("trajectory", "--run", trained[0], "--num-losses", 1, "--output-dir", tmp_path / "t")
    assert code == 0 and "2-alpha" in out, err
    code, out, err = script("report", trained[0].parent)
    assert code == 0, err


def test_training_is_the_same_with_and_without(tmp_path, data, peft_model, make_trainer):
    """Bit for bit, dropout included: nothing is drawn, nothing is left changed."""
    ends = []
    for watched in (True, False):
        model = peft_model(lora_dropout=0.2)
        trainer = make_trainer(model, "zeta", tmp_path / str(watched), save_steps=2, max_steps=5)
        if watched:
            ForgettingCallback(tmp_path / "run", "zeta", data, **QUICK).attach(trainer)
        trainer.train()
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_a_loop_of_ones_own(tmp_path, data, peft_model, rows_of, tokenizer, trained):
    """What a loop is told is what its trackers get; with the same steps as the Trainer it is the same run."""

    class Mine(GeneralTracker):
        name, requires_logging_directory, tracker, logged = "mine", False, None, []

        @on_main_process
        def store_init_configuration(self, values):
            pass

        @on_main_process
        def log(self, values, step=None, **kwargs):
            self.logged.append((step, values))

    accelerator = Accelerator(cpu=True, log_with=Mine())
    accelerator.init_trackers("test")
    model = peft_model()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    loader = DataLoader(rows_of("zeta"), batch_size=4, collate_fn=DataCollatorForSeq2Seq(tokenizer))
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    callback = ForgettingCallback(tmp_path / "run", "zeta", data, log=accelerator.log, num_test=2, max_new_tokens=4)
    callback.begin(prepared)
    for step, batch in enumerate(loader, start=1):
        accelerator.backward(prepared(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
        found = [callback.saved(prepared, step)]
    found.append(callback.end(prepared, step))
    assert [step for step, _ in Mine.logged] == [1, 2, 2] and [v for _, v in Mine.logged][1:] == found
    callback = ForgettingCallback(tmp_path / "run", "alpha", data, log=accelerator.log, num_test=2, max_new_tokens=4)
    callback.begin(prepared)
    callback.saved(prepared, 1)
    callback.end(prepared, 3)
    assert [step for step, _ in Mine.logged] == [1, 2, 2, 3, 5]  # trackers drop what has a step below the last
    assert mc.load_run(tmp_path / "run").config["training"]["num_steps"] == {"zeta": 2, "alpha": 3}
    run = mc.load_run(tmp_path / "run")
    assert run.seed == 0 and run.config["num_test"] == 2
    assert run.accuracy_matrix.zeta.iloc[1] == found[-1]["forgetting/zeta/score"]


def test_a_log_of_ones_own_beside_a_trainer_is_refused(tmp_path, data, peft_model, make_trainer):
    trainer = make_trainer(peft_model(), "zeta", tmp_path / "out")
    with pytest.raises(UserError, match="leave log out"):
        ForgettingCallback(tmp_path / "run", "zeta", data, log=print).attach(trainer)


def test_a_killed_trainer_costs_the_run_nothing(tmp_path, data, peft_model, make_trainer, killed_at, adapter_bytes):
    """In between the run is one of the tasks before; resumed, it ends as if it had never been killed."""
    model = peft_model()

    def trainer_of(model, task, name):
        trainer = make_trainer(model, task, tmp_path / name / task)
        ForgettingCallback(tmp_path / name / "run", task, data, num_points=0, **QUICK).attach(trainer)
        return trainer

    for name in ("whole", "killed"):
        model = peft_model()
        trainer_of(model, "zeta", name).train()
        if name == "killed":
            after_one = {k: v.clone() for k, v in model.state_dict().items()}
            killed_at(trainer_of(model, "alpha", name), 5)
            run = mc.load_run(tmp_path / name / "run")
            assert run.task_names == ["zeta"] and len(run.accuracy_matrix) == 2
            model.load_state_dict(after_one)
            trainer_of(model, "alpha", name).train(resume_from_checkpoint=True)
        else:
            trainer_of(model, "alpha", name).train()
    whole, killed = (adapter_bytes(tmp_path / name / "run") for name in ("whole", "killed"))
    assert whole == killed and len(whole) == 2
    saves = [(tmp_path / name / "run/tables/saves.csv").read_text() for name in ("whole", "killed")]
    assert saves[0] == saves[1]


def test_a_first_task_that_was_killed(tmp_path, data, peft_model, make_trainer, killed_at):
    """Refused in one line, by readers and by another task; the same task may be begun again."""
    run = tmp_path / "run"

    def trainer_of(task):
        trainer = make_trainer(peft_model(), task, tmp_path / "out")
        ForgettingCallback(run, task, data, **QUICK).attach(trainer)
        return trainer

    killed_at(trainer_of("zeta"), 4)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for act in (lambda: FinishedRun(run), lambda: trainer_of("alpha").train()):
        with pytest.raises(RunDirectoryError) as refused:
            act()
        assert "\n" not in str(refused.value) and "train" in str(refused.value)
        assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    with pytest.raises(RunDirectoryError, match="the script that trains it"):
        FinishedRun(run)
    trainer_of("zeta").train()
    assert mc.load_run(run).task_names == ["zeta"]


def full_fine_tuning(model):
    return model.unload().requires_grad_(True)


def two_adapters(model):
    model.add_adapter("second", LORA)
    return model


def another_name(model):
    return get_peft_model(model.unload(), LORA, adapter_name="mine")


def base_trained_too(model):
    return model.requires_grad_(True)


def merged_base(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    return get_peft_model(model.merge_and_unload(), LORA)


LORA = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
MODELS = [
    (full_fine_tuning, "without one, all of whose weights would be trained"),
    (two_adapters, "got 'default' (LORA), 'second' (LORA)"),
    (another_name, "called 'default' as PEFT does by itself, got 'mine' (LORA)"),
    (base_trained_too, "nothing but the LoRA adapter to be trained, got"),
    (merged_base, "as after merging an adapter into it"),
    (lambda model: model, "Expected a plain LoRA adapter, got one with DoRA"),
]


def refused(act, words, folder):
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(UserError) as error:
        act()
    assert words in str(error.value) and "\n" not in str(error.value)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(("kind", "words"), MODELS)
def test_a_model_that_cannot_be_measured_is_refused(kind, words, tmp_path, data, peft_model):
    model = kind(peft_model(use_dora="DoRA" in words))
    refused(lambda: ForgettingCallback(tmp_path / "run", "zeta", data).begin(model), words, tmp_path)


@pytest.fixture
def finished(trained, data, tmp_path):
    """A copy of the finished run with the folder of its data, in which the third task is called beta."""
    shutil.copytree(trained[0], tmp_path / "run")
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(data / "zeta", tmp_path / "data" / "beta")
    manifest = (tmp_path / "run" / "manifest.json").read_text()
    write_text_atomic(tmp_path / "run" / "manifest.json", manifest.replace(str(data), str(tmp_path / "data")))
    return tmp_path


def test_what_does_not_fit_the_run_is_refused(finished, peft_model):
    fitting, small = peft_model(r=8, lora_alpha=16, target_modules="all-linear"), peft_model()

    def begin(task="beta", model=fitting, run="run", seed=42, **settings):
        return lambda: ForgettingCallback(finished / run, task, finished / "data", **settings).begin(model, seed=seed)

    refused(begin("zeta"), "has not learned yet, got zeta, its minimum 1-zeta", finished)
    refused(begin(model=small), "lora_rank 8, got 4", finished)
    refused(begin(seed=1), "seed 42, got 1", finished)
    refused(begin(ilora=IloraCallback()), 'expected strategy "sequential", got "ilora"', finished)
    refused(begin("gamma"), "Expected a folder of task 'gamma'", finished)
    refused(begin("mean"), "names a mean in the tables", finished)
    refused(begin(num_points=2), "Expected num_points of at least 3", finished)
    (finished / "data" / "zeta" / "eval.json").write_text('[{"prompt": "a", "answer": "b"}]')
    refused(begin(), "expected zeta with content hash", finished)
    (finished / "mine").mkdir()
    (finished / "mine" / "notes.txt").write_text("mine")
    refused(begin(run="mine"), "Expected an empty directory or a run", finished)


@pytest.mark.parametrize("targets", [r".*layers\.1\..*[qv]_proj", ["down_proj", "layers.0.self_attn.q_proj"]])
def test_modules_named_in_any_way_are_those_of_the_run(targets, tmp_path, data, peft_model):
    """PEFT finds the saved adapter's modules by the same words, and the run has a slot on each of them and no other."""
    model = peft_model(target_modules=targets, rank_pattern={"q_proj": 2})
    callback = ForgettingCallback(tmp_path / "run", "zeta", data, **QUICK)
    callback.begin(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.01 if "lora_B" in name else 0)
    values = callback.end(model, 1)
    run = mc.load_run(tmp_path / "run")
    (minimum,) = run.minima
    said = json.loads((minimum.directory / "adapter_config.json").read_text())
    assert said["target_modules"] == targets
    assert sorted(run.model.scaling) == sorted(name.partition(".lora_A")[0] for name in minimum.point if "_A" in name)
    assert run.objective("zeta", "test", 1)(minimum.point).loss == values["forgetting/zeta/loss"]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run.config["model"]), minimum.directory)


def test_an_adapter_that_diverged_is_no_minimum(finished, peft_model):
    model = peft_model(r=8, lora_alpha=16, target_modules="all-linear")
    callback = ForgettingCallback(finished / "run", "beta", finished / "data")
    callback.begin(model, seed=42)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).fill_(float("nan"))
    refused(lambda: callback.end(model, 3), "got NaN or infinity", finished / "run")
    assert mc.load_run(finished / "run").task_names == ["zeta", "alpha"]


def test_without_attach_a_trainer_that_has_trackers_is_told(tmp_path, data, peft_model, make_trainer, caplog):
    callback = ForgettingCallback(tmp_path / "run", "zeta", data, **QUICK)
    trainer = make_trainer(peft_model(), "zeta", tmp_path, max_steps=2, more={"callbacks": [callback]})
    trainer.args.report_to = ["wandb"]
    trainer.train()
    assert "call attach(trainer)" in caplog.text
    assert "forgetting/zeta/loss" in trainer.state.log_history[-1]
