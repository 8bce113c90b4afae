"""Answers that no model can give: changed by the tokenizer, cut by the limit, empty; and references of worked sums."""

import json
import logging
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import mcanalysis as mc
from mcanalysis.benchmarks import load_benchmark
from mcanalysis.errors import DataError, UnknownNameError, UserError
from mcanalysis.evaluation import reach as reach_module
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.evaluation.reach import reach
from mcanalysis.metrics import get_score
from mcanalysis.models.encoding import encode_all
from mcanalysis.runs.run import Run
from mcanalysis.tasks.task import Example, Task, TaskData
from mcanalysis.tasks.trace_files import load_examples
from mcanalysis.training.config import RunConfig

RUNS = Path(__file__).parents[1] / "runs_of_version_0_1"


def tokenizer_with(normalizer):
    """A byte-level tokenizer: a token per byte, after a normaliser."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)} | {"<e>": 256}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<e>", pad_token="<e>")


def found(answers, score, limit, tokenizer, prompt="p:"):
    examples = [Example(prompt, answer) for answer in answers]
    return reach(Task("mine", "en", score, limit), examples, encode_all(examples, tokenizer, 256)[0], tokenizer)


LOWER = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
DECOMPOSED = unicodedata.normalize("NFD", "café")


def test_what_the_tokenizer_changes_is_counted_and_the_normalised_score_reaches_it():
    answers = ["Paris", "rome", DECOMPOSED, "Berlin"]
    here = found(answers, "exact_match", 20, tokenizer_with(LOWER))
    assert (here.unreachable, here.changed, here.cut, here.empty, here.normalized) == (3, 3, 0, 0, True)
    assert here.score == 1 / 4
    assert found(answers, "exact_match_normalized", 20, tokenizer_with(LOWER)).unreachable == 0
    assert found(answers, "exact_match", 20, tokenizer_with(None)).unreachable == 0
    stripped = tokenizer_with(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]))
    here = found(["café", "tea"], "exact_match", 20, stripped)
    assert here.changed == 1 and not here.normalized  # accents count there too


def test_what_the_limit_cuts_is_counted_with_the_limit_that_would_do():
    tokenizer = tokenizer_with(None)  # a token per byte
    here = found(["1234", "12345", "1234567"], "exact_match", 5, tokenizer)
    assert (here.cut, here.longest, here.changed, here.score) == (1, 7, 0, 2 / 3)
    assert found(["1234", "12345", "1234567"], "exact_match", 7, tokenizer).unreachable == 0
    assert found(["B\nbecause it is so"], "accuracy", 4, tokenizer).unreachable == 0  # its letter is all that is scored


def test_an_empty_answer_is_out_of_reach():
    here = found(["", "  ", "x"], "exact_match", 5, tokenizer_with(None))
    assert (here.empty, here.unreachable, here.score) == (2, 2, 1 / 3)
    assert found(["?!", "word"], "rouge_l", 5, tokenizer_with(None)).empty == 1  # no word to match


def test_a_graded_score_is_out_of_reach_below_a_share_of_what_the_answer_gives_itself():
    tokenizer = tokenizer_with(None)
    words = " ".join(f"w{i}" for i in range(10, 30))  # 20 words of 3 characters and a space
    for kept, expected in ((19, 0), (17, 1)):  # F1 = 2·19/39 = 0.974; 2·17/37 = 0.919
        here = found([words], "rouge_l", 4 * kept - 1, tokenizer)
        assert here.cut == expected
        assert here.score == pytest.approx(2 * kept / (kept + 20))
        assert (here.score < reach_module.SHARE) == bool(expected)


def test_one_line_says_how_many_of_which_task_and_the_remedy(caplog, monkeypatch):
    monkeypatch.setattr(reach_module, "_warned", set())
    tokenizer = tokenizer_with(LOWER)
    data = TaskData.of(
        Task("mine", "en", "exact_match", 5),
        {"test": [Example("p:", a) for a in ("1234567", "Paris", "", "rome")], "eval": [Example("p:", "Rome")]},
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            make_objective(data, "test", tokenizer, 64)
        make_objective(data, "eval", tokenizer, 64)
        make_objective(replace(data, task=data.task.with_score("exact_match_normalized")), "eval", tokenizer, 64)
    assert [r.message for r in caplog.records] == [
        "mine, test split: 3 of 4 answers cannot be scored right, whatever the model: 1 longer than the limit of 5, "
        "raise --max-new-tokens to 7; 1 that the tokenizer does not give back as they are written, choose the score "
        "exact_match_normalized; 1 empty for the score exact_match, remove them. At best exact_match is about 0.25; "
        "losses are right",
        "mine, eval split: all of 1 answers cannot be scored right, whatever the model: 1 that the tokenizer does not "
        "give back as they are written, choose the score exact_match_normalized. At best exact_match is about 0; "
        "losses are right",
    ]


def test_a_dry_run_says_it_too(run_config, make_tasks, caplog, monkeypatch):
    from mcanalysis.training.dry_run import dry_run

    monkeypatch.setattr(reach_module, "_warned", set())
    tasks = [replace(t, task=t.task.with_limit(1)) for t in make_tasks(("zeta",))]
    with caplog.at_level(logging.WARNING):
        dry_run(run_config(), tasks=tasks)
    assert "zeta, test split: " in caplog.text and "raise --max-new-tokens to" in caplog.text


def test_a_model_that_has_learned_a_long_answer_scores_once_the_limit_is_raised(
    make_model, base_folder, train_task, tokenizer, tmp_path, caplog
):
    from mcanalysis.strategies import make_strategy

    long = " ".join(["green stone"] * 60)
    examples = [Example("apple river:", long)]
    encoded, _ = encode_all(examples, tokenizer, 250)
    needed = len(encoded[0].answer_ids) - 1
    assert needed > 64
    model = make_model()
    strategy = make_strategy("sequential", 0)
    strategy.begin(model, 1)
    strategy.begin_task(model, 0, encoded * 4)
    train_task(model, strategy, encoded * 4, num_steps=40, learning_rate=2e-2)
    point = {n: t.detach().clone() for n, t in model.point().items()}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([{"prompt": e.prompt, "answer": e.answer} for e in examples]))
    reach_module._warned.clear()
    with caplog.at_level(logging.WARNING):
        short = mc.adapter_objective(str(base_folder), [point], file, device="cpu")(point)
    assert f"raise --max-new-tokens to {needed}" in caplog.text
    whole = mc.adapter_objective(str(base_folder), [point], file, device="cpu", max_new_tokens=needed)(point)
    assert (short.score, whole.score) == (0, 1) and short.loss == whole.loss
    with pytest.raises(UserError, match="Expected a limit of at least 1 new token for mine, got 0"):
        mc.adapter_objective(str(base_folder), [point], file, device="cpu", max_new_tokens=0)


def test_limits_by_task_reach_benchmark_run_and_settings_key(tmp_path, tokenizer):
    for name in ("FOMC", "Mine"):
        for split in ("train", "eval", "test"):
            file = tmp_path / name / f"{split}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps([{"prompt": "Text:", "answer": "A"}]))
    fomc, mine = load_benchmark("trace", tmp_path, max_new_tokens={"Mine": 200})
    assert (fomc.task.max_new_tokens, mine.task.max_new_tokens) == (4, 200)
    plain = load_benchmark("trace", tmp_path)[1]
    keys = {make_objective(data, "test", tokenizer).settings_key for data in (plain, mine)}
    assert len(keys) == 2
    with pytest.raises(UnknownNameError, match="Unknown task 'Mein'"):
        load_benchmark("trace", tmp_path, max_new_tokens={"Mein": 200})


def test_runs_of_version_0_1_are_the_same_runs_and_a_limit_makes_another():
    recorded = json.loads((RUNS / "interrupted/manifest.json").read_text())["config"]
    again = RunConfig.from_resolved(recorded)
    assert again.resolved().keys() == recorded.keys()
    limited = replace(again, max_new_tokens={"FOMC": 9})
    assert limited.resolved()["max_new_tokens"] == {"FOMC": 9}
    assert RunConfig.from_resolved(json.loads(json.dumps(limited.resolved()))).max_new_tokens == {"FOMC": 9}
    assert Run(RUNS / "finished").tasks["FOMC"].task.max_new_tokens == 2  # the embedded task's own


def test_the_flag_takes_a_number_or_a_number_by_task():
    import argparse

    from mcanalysis.cli import flags, run_flags

    assert flags.limits("64") == [("", 64)] and flags.limits("A=8,B=9") == [("A", 8), ("B", 9)]
    for wrong in ("many", "A=many", "A=1,B"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            flags.limits(wrong)
    parser = flags.Parser(None)
    run_flags.add_run_flags(parser)
    run_flags.add_general_flags(parser)
    args = parser.parse_args(["--max-new-tokens", "FOMC=8,general/Mine=9", "--general-data", "there"])
    assert run_flags.run_config(args, "er", 0, {}).max_new_tokens == {"FOMC": 8}
    assert run_flags.general(args).max_new_tokens == {"Mine": 9}
    with pytest.raises(UserError, match="Expected one number for --max-new-tokens with --minima"):
        run_flags.limit_of_all(args)
    args = parser.parse_args(["--max-new-tokens", "8"])
    assert run_flags.limit_of_all(args) == 8
    with pytest.raises(UserError, match="Expected TASK=N for --max-new-tokens, got 8 for no task"):
        run_flags.run_config(args, "er", 0, {})


# Worked solutions


WORKED = "Tom has 3 apples and buys 2.\n3 + 2 = <<3+2=5>>5\n#### 5"


def last_after_mark(text):
    """The result of a solution by hand: plain splitting, no regular expression of ours."""
    words = text.split("####")[-1].replace(",", "").replace("$", "").split()
    numbers = [w.rstrip(".") for w in words if w.rstrip(".").lstrip("-").replace(".", "", 1).isdigit()]
    return float(numbers[0]) if numbers else None


@pytest.mark.parametrize(
    ("output", "right"),
    [
        (WORKED, 1),
        ("3 apples and 2 make 5 apples.", 1),  # the last number
        ("The answer is 5. That took 2 steps.", 1),
        ("the ANSWER  is $5.00, not 6", 1),
        ("#### 5\nThen #### 6", 0),  # the last mark
        ("#### 6\nI mean: the answer is 5", 0),  # the mark before the words
        ("5 apples less 2 are 3", 0),
        ("#### five", 0),
        ("#### 5,000", 0),
        ("", 0),
    ],
)
def test_the_final_number_is_read_on_both_sides(output, right):
    assert get_score("final_number_accuracy").per_example(output, WORKED) == right


def test_the_final_number_behind_a_mark_is_the_one_of_plain_splitting():
    from mcanalysis.metrics.scores.final_number_accuracy import final_number

    for text in (WORKED, "1 2 3 #### -7", "9 #### 1,234", "#### $18", "#### 0.5 kg", "2 #### 3 #### 4"):
        assert final_number(text) == last_after_mark(text)


def test_worked_references_under_the_first_number_are_refused_with_the_remedy(tmp_path):
    file = tmp_path / "gsm.json"
    file.write_text(json.dumps([{"prompt": "Q", "answer": "7"}, {"prompt": "Q", "answer": WORKED}]))
    with pytest.raises(DataError, match=r"gsm, test split, example 1: .* choose the score final_number_accuracy"):
        load_examples(file, "number_accuracy")
    assert load_examples(file, "final_number_accuracy").task.score == "final_number_accuracy"
    file.write_text(json.dumps([{"prompt": "Q", "answer": "none"}]))
    with pytest.raises(DataError, match="Expected a reference that holds a number, got 'none'"):
        load_examples(file, "final_number_accuracy")
