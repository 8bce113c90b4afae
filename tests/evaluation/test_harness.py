"""Tasks of lm-evaluation-harness along a path: what its own model, loaded by itself from the same adapter, gives."""

import json
import math
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

import mcanalysis as mc
from mcanalysis.errors import UserError
from mcanalysis.evaluation.harness import HarnessObjective
from mcanalysis.evaluation.harness_tasks import Harness, harness_tasks
from mcanalysis.studies import adapters as study
from mcanalysis.studies.points import _num_shares

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

CHOICES = ["green stone", "quiet paper north", "Haus"]
ROWS = [
    {"q": f"apple river {'seven ' * (i % 3)}{i}:", "choices": CHOICES, "gold": i % 3, "a": CHOICES[i % 3]}
    for i in range(7)
]
MEAN = {"aggregation": "mean", "higher_is_better": True}
TASKS = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold", "num_fewshot": 2, "fewshot_split": "train",
        "metric_list": [
            {"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN},
            {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
        ],
    },
    "text": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}} {{a}}",
        "metric_list": [
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    },
    "word": {
        "output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": " {{a}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}, {"metric": "acc", **MEAN},
        ],
    },
    "answer": {
        "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
        "generation_kwargs": {"max_gen_toks": 6, "until": ["\n"]},
        "metric_list": [
            {"metric": "exact_match", **MEAN},
            {"metric": "chrf", "aggregation": "chrf", "higher_is_better": True},
        ],
        "filter_list": [
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {"name": "first-letter", "filter": [
                {"function": "regex", "regex_pattern": "([a-zA-Z])"}, {"function": "take_first"},
            ]},
        ],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def make_task(tmp_path_factory):
    """make_task(kind, **changes) -> the YAML file of a task whose data lie beside it."""
    data = tmp_path_factory.mktemp("data")
    (data / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    files = {"train": str(data / "rows.jsonl"), "test": str(data / "rows.jsonl")}
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": files, "cache_dir": str(data / "cache")},
        "training_split": "train", "test_split": "test", "metadata": {"version": 1.0},
    }  # fmt: skip

    def make(kind, name=None, **changes):
        name = name or kind
        file = tmp_path_factory.mktemp("task") / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**common, "task": name, **TASKS[kind], **changes}))
        return str(file)

    return make


@pytest.fixture(scope="module")
def tasks(make_task):
    return [make_task(kind) for kind in TASKS]


@pytest.fixture(scope="module")
def pair(make_model, random_point, tmp_path_factory):
    """Two adapters on disk, α/r = 4, and their points as they are read from there."""
    folder, model = tmp_path_factory.mktemp("adapters"), make_model()
    for name, seed in (("first", 1), ("second", 2)):
        model.save(folder / name, random_point(model, seed))
    folders = [str(folder / name) for name in ("first", "second")]
    return folders, [mc.load_adapter(f).point for f in folders]


@pytest.fixture(scope="module")
def objective(tasks, base_folder, pair):
    return mc.lm_eval_objective(tasks, str(base_folder), pair[1], device="cpu", limit=6)


@pytest.fixture(scope="module")
def harness_alone(base_folder):
    """harness_alone(adapter, tasks, **settings) -> what lm-eval gives that loads base and adapter by itself."""

    def run(adapter, tasks, **settings):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # calls a dozen programs
            return lm_eval.simple_evaluate(
                model="hf", model_args={"pretrained": str(base_folder), "peft": adapter}, device="cpu", tasks=tasks,
                task_manager=lm_eval.tasks.TaskManager(include_defaults=False), bootstrap_iters=0, **settings,
            )  # fmt: skip

    return run


def values(results):
    return {
        name: {k: v for k, v in row.items() if "," in k and "_stderr" not in k}
        for name, row in results["results"].items()
    }


def test_ends_are_what_lm_eval_prints_to_the_last_digit(objective, harness_alone, pair, tasks):
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    for folder, point in zip(*pair, strict=True):
        ours, theirs = objective(point), values(harness_alone(folder, tasks, limit=6))
        assert ours.results == theirs
        assert {n: m.score for n, m in ours.tasks.items() if n != "text"} == {
            "choice": theirs["choice"]["acc,none"],
            "word": theirs["word"]["acc,none"],
            "answer": theirs["answer"]["exact_match,whole"],
        }
        assert math.isnan(ours.tasks["text"].score)  # no metric of it is better when higher
        of_words = ours.tasks["word"]  # its perplexity is e to the mean over examples, not tokens
        assert math.exp(of_words.nll.mean()) == pytest.approx(theirs["word"]["perplexity,none"], rel=1e-12)
        words = sum(len(f"{row['q']} {row['a']}".split()) for row in ROWS[:6])
        of_text = math.exp(ours.tasks["text"].nll.sum() / words)
        assert of_text == pytest.approx(theirs["text"]["word_perplexity,none"], rel=1e-12)
    objective(pair[1][0])
    random.setstate(state[0])  # theirs sets the seeds, ours leaves them


def test_losses_are_those_of_the_right_answers(objective, base_folder, pair, tokenizer, alone):
    """By PEFT and a plain cross-entropy; the tokens are those of prompt and answer together."""
    network = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), pair[0][0]).eval()
    found = objective(pair[1][0])
    for of in objective.objectives:
        with torch.no_grad():
            expected = [float(alone(network, e)[0]) for e in of.encoded]
        np.testing.assert_allclose(found.tasks[of.name].nll, expected, rtol=1e-5)
        assert found.tasks[of.name].targets.tolist() == [len(e.answer_ids) for e in of.encoded]
        for row, (example, encoded) in enumerate(zip(of.examples, of.encoded, strict=True)):
            right = f"{ROWS[row]['q']} {ROWS[row]['a']}" if of.name == "text" else f" {ROWS[row]['a']}"
            assert example.answer == right
            whole = tokenizer(example.prompt + example.answer)["input_ids"]
            start = (tokenizer.bos_token_id or tokenizer.eos_token_id,) if of.name == "text" else ()
            assert encoded.prompt_ids + encoded.answer_ids == (*start, *whole)
    total = sum(m.nll.sum() for m in found.tasks.values()) / sum(m.targets.sum() for m in found.tasks.values())
    assert found.loss == pytest.approx(total) and len(found.nll) == 24


def test_scores_per_example_are_those_of_its_log(objective, harness_alone, pair, tasks):
    ours = objective(pair[1][1])
    logged = harness_alone(pair[0][1], tasks[:1], limit=6)["samples"]["choice"]
    assert ours.tasks["choice"].scores.tolist() == [s["acc"] for s in logged]
    path = mc.Linear(*pair[1])
    profile = mc.profile(path, lambda point: objective.measure(point, ["choice"]), ts=[0, 0.5, 1])
    low, high = profile.chord_barrier_interval("score")
    assert 0 <= low <= high <= 1


def test_in_between_it_is_the_adapter_saved_there(objective, harness_alone, pair, tasks, base_folder, tmp_path):
    """Also as a model of lm-eval, at one point after the other; and nothing is left of the point."""
    path = mc.Linear(*pair[1], space="delta")
    mc.save_adapter(path(0.5), tmp_path / "middle", str(base_folder))
    theirs = values(harness_alone(str(tmp_path / "middle"), tasks, limit=6))
    before = {name: tensor.clone() for name, tensor in objective.lm.adapted.parameters.items()}
    assert objective(path(0.5)).results == theirs
    from mcanalysis.integrations.lm_eval import PointLM

    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    lm = PointLM.load(str(base_folder), pair[1], device="cpu")
    assert isinstance(lm, lm_eval.api.model.LM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        settings = {"tasks": tasks, "task_manager": manager, "bootstrap_iters": 0, "limit": 6}
        assert values(lm_eval.simple_evaluate(model=lm.at(path(0.5)), **settings)) == theirs
        assert values(lm_eval.simple_evaluate(model=lm.at(path(0.0)), **settings)) == objective(path(0.0)).results
    for name, tensor in objective.lm.adapted.parameters.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_ends_in_the_weights_are_equal_too_where_ranks_and_modules_differ(
    make_model, random_point, harness_alone, tasks, base_folder, tmp_path
):
    """There an end has the other adapter's factors as well, times zero, which would change the order of sums."""
    folders = [tmp_path / "wide", tmp_path / "narrow"]
    for folder, rank, modules in zip(folders, (16, 2), (("q_proj", "v_proj"), ("up_proj", "q_proj")), strict=True):
        model = make_model(rank=rank, target_modules=modules)
        model.save(folder, random_point(model, rank))
    points = [mc.load_adapter(folder).point for folder in folders]
    path = mc.Linear(*points, space="delta")
    objective = mc.lm_eval_objective(tasks[1:3], str(base_folder), points, device="cpu")
    for t, folder in enumerate(folders):
        assert objective(path(float(t))).results == values(harness_alone(str(folder), tasks[1:3]))


def test_what_has_no_values_per_example_is_given_without_an_interval(make_task, objective, pair, caplog):
    for kind, metric in (("choice", "mcc"), ("answer", "chrf,first-letter")):
        caplog.clear()
        found = HarnessObjective(Harness(make_task(kind), metric), objective.lm)
        assert f"{metric.split(',')[0]} of {kind} is not a mean over examples" in caplog.text
        key = metric if "," in metric else f"{metric},none"
        profile = mc.profile(mc.Linear(*pair[1]), found, ts=[0, 1])
        assert profile.scores[0] == found(pair[1][0]).results[kind][key]
        assert np.isnan(profile.chord_barrier_interval("score")).all() and profile.chord_barrier("score") == 0
        assert np.isfinite(profile.chord_barrier_interval()).all()
    caplog.clear()
    Harness(make_task("text"))
    assert "no metric of text is better when it is higher (word_perplexity, bits_per_byte): losses alone" in caplog.text


def test_what_cannot_be_measured_is_refused_in_one_line(make_task, tmp_path, monkeypatch, objective, pair):
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    far = make_task("choice", dataset_path="someone/nowhere", dataset_kwargs={"cache_dir": str(tmp_path)})
    wrong = make_task("choice", doc_to_target="{{gold * 3}}", num_fewshot=0)
    long = make_task("answer", generation_kwargs={"max_gen_toks": 256, "until": ["\n"]})
    late = make_task("choice", doc_to_text="{% if gold %}{{nothing.q}}{% endif %}{{q}}", num_fewshot=0)
    code = make_task("answer", unsafe_code=True)
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: [")
    refused = {
        "fetch its data where there is a network": (far,),
        r"a right choice, from 0 to 2, in every example of the task choice .* got 3": (wrong,),
        "to write fewer than 256 tokens, the positions of this base, got 256": (long,),
        "one that runs what the model writes as code": (code,),
        "correct its YAML file": (str(broken),),
        "Expected the task choice of lm-eval .* 'nothing' is undefined; correct its YAML": (late,),
        r"Unknown metric of choice 'acc_nrm'. Did you mean 'acc_norm,none'\?": (make_task("choice"), "acc_nrm"),
        "better when it is higher as the score of text, got word_perplexity": (make_task("text"), "word_perplexity"),
    }
    for sentence, arguments in refused.items():
        with pytest.raises(UserError, match=sentence) as error:
            HarnessObjective(Harness(*arguments), objective.lm)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="Expected a limit above 0, got 0"):
        HarnessObjective(objective.harness, objective.lm, 0)
    with pytest.raises(UserError, match="data files or, after lm_eval:, tasks"):
        harness_tasks(["questions.json", "lm_eval:piqa"])
    monkeypatch.setattr("mcanalysis.evaluation.point_lm.Instance", None)
    with pytest.raises(UserError, match=r"Expected the package lm_eval .*'mcanalysis\[lm-eval\]"):
        mc.lm_eval_objective("piqa", "embedded", pair[1])


def test_a_point_that_is_no_numbers_has_none(objective, pair):
    point = {k: v.clone() for k, v in pair[1][0].items()}
    next(iter(point.values()))[0, 0] = float("nan")
    found = objective(point)
    assert math.isnan(found.loss) and math.isnan(found.tasks["choice"].score) and found.results == {}


def test_prompts_that_are_cut_are_counted(make_task, objective, caplog):
    task = make_task("choice", doc_to_text="{{'apple ' * 130 * (gold + 1)}}", num_fewshot=0)
    found = HarnessObjective(Harness(task), objective.lm).objectives[0]
    whole = objective.lm.encode([(e.prompt, e.answer) for e in found.examples])
    cut = [len(prompt) + len(answer) > 257 for prompt, answer in whole]
    assert 0 < found.num_cut == sum(cut) < len(cut)
    assert f"{found.num_cut} of 7 prompts of the task choice are longer than the 256 positions" in caplog.text


def test_a_text_of_several_windows_counts_whole_and_fits_into_a_pass(make_task, objective, harness_alone, pair):
    task = make_task("text", doc_to_target="{{q}} {{'green river ' * 300}}")
    (of,) = HarnessObjective(Harness(task), objective.lm, 2).objectives
    assert all(len(e) == 257 for e in of.encoded) and min(of.num_targets) > 600
    theirs = values(harness_alone(pair[0][0], [task], limit=2))["text"]["word_perplexity,none"]
    words = sum(len((row["q"] + " " + "green river " * 300).split(" ")) for row in ROWS[:2])
    assert math.exp(of.owner(pair[1][0]).nll.sum() / words) == pytest.approx(theirs, rel=1e-12)


def test_keys_tell_apart_what_could_change_a_number(make_task, objective):
    def key(file, *arguments, limit=None):
        return HarnessObjective(Harness(file, *arguments), objective.lm, limit).objectives[0].settings_key

    task = make_task("choice")
    changed = [
        make_task("choice", metadata={"version": 2.0}), make_task("choice", doc_to_text="{{q}} "),
        make_task("choice", num_fewshot=1), make_task("choice", doc_to_target="{{2 - gold}}"),
    ]  # fmt: skip
    keys = [key(task), key(task, "acc_norm"), key(task, None, 1), key(task, limit=6), *map(key, changed)]
    assert key(task) == keys[0] == key(make_task("choice"), "acc")
    assert len(set(keys)) == len(keys) - 1 and keys[2] == keys[6]  # one example in the prompt, whoever says so


def test_connectivity_keeps_what_it_measured(objective, pair, tasks, base_folder, tmp_path, monkeypatch, harness_alone):
    data = (f"lm_eval:{tasks[0]}", tasks[1])
    opening = study.AdaptersOpening(tuple(pair[0]), str(base_folder), data, tmp_path / "out", device="cpu")
    settings = study.AdapterConnectivity(
        num_points=2, num_examples=6, paths=("linear-delta", "bezier-factor"), curve_steps=2
    )
    first = study.connect_adapters(opening, settings).tables
    profiles = first["profiles"].set_index(["path", "task", "t"])
    for t, folder in enumerate(pair[0]):
        theirs = values(harness_alone(folder, tasks[:2], limit=6))
        for path in ("linear", "bezier"):
            assert profiles.score[path, "choice", t] == theirs["choice"]["acc,none"]
            row = profiles.loc[path, "text", t]
            assert row.loss * row.num_targets == pytest.approx(
                math.log(theirs["text"]["word_perplexity,none"])
                * sum(len(f"{r['q']} {r['a']}".split()) for r in ROWS[:6])
            )
    assert profiles.score_low["linear", "choice", 0] <= profiles.score["linear", "choice", 0]
    assert _num_shares(objective.objectives, 8, 1) == 1  # its prompts may depend on those before
    monkeypatch.setattr("lm_eval.evaluator.evaluate", None)  # nothing is measured again
    again = study.connect_adapters(opening, settings).tables
    pd.testing.assert_frame_equal(again["profiles"], first["profiles"])
    for change, sentence in (
        ({"data_files": ("questions.json",), "num_fewshot": 1}, "--num-fewshot is for tasks of lm-eval"),
        ({"max_new_tokens": 9}, "--max-new-tokens, --chat-template, --max-length are for data files"),
        ({"max_length": 256}, "--max-new-tokens, --chat-template, --max-length are for data files"),
    ):
        with pytest.raises(UserError, match=sentence):
            study.connect_adapters(opening._replace(**change), settings)
    with pytest.raises(UserError, match="not with --ensemble or --tolerance"):
        study.connect_adapters(opening, study.AdapterConnectivity(ensemble=2))


@pytest.mark.slow
def test_tasks_of_different_sizes_are_measured_whole(make_task, pair, base_folder, tmp_path):
    rows = tmp_path / "few" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text("\n".join(map(json.dumps, ROWS[:4])))
    files = {"data_files": {"train": str(rows), "test": str(rows)}, "cache_dir": str(tmp_path / "few" / "c")}
    tasks = (f"lm_eval:{make_task('word', name='small', dataset_kwargs=files)}", make_task("word", name="big"))
    opening = study.AdaptersOpening(tuple(pair[0]), str(base_folder), tasks, tmp_path / "out", device="cpu")
    settings = study.AdapterConnectivity(num_points=2, paths=("linear-delta",))
    profiles = study.connect_adapters(opening, settings).tables["profiles"]
    numbers = profiles[profiles.task.isin(["small", "big"])].groupby("task").num_examples.unique()
    assert numbers["small"].tolist() == [4] and numbers["big"].tolist() == [len(ROWS)]


@pytest.mark.slow
def test_tasks_that_lm_eval_brings(monkeypatch):
    """Their index takes seconds; the data lie on the hub."""
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"Expected the task piqa of lm-eval .* fetch its data where there is a network"
    ):
        Harness("piqa")
    with pytest.raises(UserError, match=r"got 'arc_esy'. Did you mean 'arc_easy'\?"):
        Harness(["arc_esy"])


@pytest.mark.slow
def test_ends_are_what_the_command_line_of_lm_eval_writes(make_task, objective, pair, base_folder, tmp_path):
    """Of metrics whose standard errors it does not take from 100,000 resamples."""
    kept = {kind: TASKS[kind]["metric_list"][:n] for kind, n in (("choice", 2), ("text", 2), ("answer", 1))}
    tasks = [make_task(kind, metric_list=metrics) for kind, metrics in kept.items()]
    model = f"pretrained={base_folder},peft={pair[0][0]}"
    command = ["run", "--model", "hf", "--model_args", model, "--device", "cpu", "--tasks", ",".join(tasks)]
    command += ["--limit", "6", "--output_path", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, "-m", "lm_eval", *command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("out*.json")
    ours = HarnessObjective(Harness(tasks), objective.lm, 6)(pair[1][0])
    assert values(json.loads(file.read_text())) == ours.results
