"""The search of each strategy's settings: which trials there are, on what they are scored, what is chosen, the file."""

import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import yaml

from mcanalysis.errors import DataError, DivergedError, RunDirectoryError, UnknownNameError, UserError
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.strategies import get_strategy, make_strategy, strategy_names
from mcanalysis.strategies.strategy import Strategy
from mcanalysis.studies.engine import Engine, Here
from mcanalysis.studies.tuned import Chosen, Tuned
from mcanalysis.studies.tuning import Search, Trial, Tuning, _or_diverged, further_trials, trials_of
from mcanalysis.tasks.task import Example, Task, TaskData
from mcanalysis.training.config import RunConfig
from mcanalysis.training.continual_trainer import train

TRAINED = [name for name in strategy_names() if get_strategy(name).schedule != "none"]


def whole(config):
    """All that a trial differs in, those settings included that it leaves at their defaults."""
    settings = asdict(make_strategy(config.strategy, 0, **config.strategy_settings).config)
    return config.training.rate_for(config.model), tuple(settings.items())


@pytest.mark.parametrize("name", TRAINED)
def test_each_strategy_has_as_many_different_trials_as_its_grid_lets_it(name):
    trials = trials_of(RunConfig(strategy=name, seed=100), 8)
    grid = 3 * math.prod(len(set(values)) for values in get_strategy(name).searched.values())
    default = asdict(make_strategy(name, 0).config)
    lies_in_it = all(default[setting] in values for setting, values in get_strategy(name).searched.items())
    assert [t.number for t in trials] == list(range(min(8, grid + (not lies_in_it))))
    assert {t.of for t in trials} == {grid + (not lies_in_it)}
    assert len({whole(t.config) for t in trials}) == len(trials)
    assert whole(trials[0].config) == (3e-3, tuple(default.items()))  # the first is the strategy as it is
    rates = [t.config.training.learning_rate for t in trials_of(RunConfig(strategy=name, seed=100), 10**6)]
    assert sorted(set(rates)) == pytest.approx([1e-3, 3e-3, 9e-3])


def test_the_draw_is_the_same_each_time_goes_on_with_more_trials_and_depends_on_the_seed():
    def settings(number, seed=100, strategy="ilora"):
        return [whole(t.config) for t in trials_of(RunConfig(strategy=strategy, seed=seed), number)]

    assert settings(8) == settings(8) == settings(20)[:8]
    assert settings(8, seed=101) != settings(8)


def test_what_is_given_is_not_searched():
    trials = trials_of(RunConfig(strategy="ilora", strategy_settings={"ema_decay": 0.5}), 99)
    assert {t.config.strategy_settings["ema_decay"] for t in trials} == {0.5} and trials[0].of == 3 * 3
    (own, *_) = trials_of(replace(RunConfig(strategy="er"), model="my/base"), 1)
    assert own.config.training.learning_rate == 2e-4


STRANGER = """
from dataclasses import dataclass

from mcanalysis.strategies.strategy import Strategy, StrategyConfig


@dataclass(frozen=True)
class Config(StrategyConfig):
    weight: float = 0.5


class Plain(Strategy):
    name, reference, config_class = "plain", "none", Config


class Rich(Plain):
    name, searched = "rich", {"weight": (0.5, 2.0)}


class Wrong(Plain):
    name, searched = "wrong", {"wieght": (0.5, 2.0)}
"""


def test_a_strangers_strategy_is_searched_over_what_it_declares(install_package):
    names = ("plain", "rich", "wrong")
    entries = {name: f"theirs:{name.capitalize()}" for name in names}
    install_package("theirs", "mcanalysis.strategies", entries, {"theirs": STRANGER})
    found = {name: trials_of(RunConfig(strategy=name), 99) for name in names[:2]}
    assert [t.config.strategy_settings for t in found["plain"]] == [{}] * 3
    assert len(found["rich"]) == 6
    with pytest.raises(UnknownNameError, match=r"Unknown setting of wrong 'wieght'\. Did you mean 'weight'"):
        trials_of(RunConfig(strategy="wrong"), 99)
    for values in (2.0, "abc", ()):
        with pytest.raises(UserError, match="Expected a list of values for each setting in searched of mine"):
            type("Mine", (Strategy,), {"name": "mine", "searched": {"weight": values}})


def run(score, learning=1.0, seconds=2.0):
    return SimpleNamespace(
        metrics={"average_accuracy": score, "learning_accuracy": learning}, cost={"train_seconds": seconds}
    )


@pytest.fixture
def search(tmp_path):
    """search({"er": 2, "ilora": 3}, seeds) -> a search with so many trials of each, none of them trained."""

    def make(numbers, seeds=(100, 101)):
        base = RunConfig(tasks=("FOMC", "MedMCQA"), seed=seeds[0])
        trials = [
            replace(trial, config=replace(trial.config, seed=seed))
            for name, number in numbers.items()
            for trial in trials_of(replace(base, strategy=name), number)
            for seed in seeds
        ]
        tuning = Tuning(tuple(numbers), seed=seeds, output_dir=str(tmp_path / "tuning"))
        return Search(tuning, base, ["FOMC", "MedMCQA"], trials, [], [], lambda trials: [])

    return make


def test_the_highest_mean_over_the_seeds_is_chosen_and_the_earlier_of_equals(search, tmp_path):
    found = search({"er": 3, "ilora": 3, "individual": 2})
    scores = [0.5, 0.6, 0.9, 0.1, 0.4, 0.7, 0.2, 0.5, 0.4, 0.3, 0.1, 0.1]  # trial by trial, its two seeds together
    runs = [*map(run, scores), *(run(None, learning) for learning in (0.3, 0.3, 0.6, 0.8))]
    table = found.write(found.table(runs))
    # By hand. er: 0.55, 0.5, 0.55; ilora: 0.35, 0.35, 0.1; individual has no average accuracy: 0.3, 0.7.
    assert list(table.score) == pytest.approx([0.55, 0.5, 0.55, 0.35, 0.35, 0.1, 0.3, 0.7])
    assert list(table.chosen) == [True, False, False, True, False, False, False, True]
    assert list(table.train_seconds) == [4.0] * 8 and set(table.split) == {"eval"}
    tuned = Tuned.read(tmp_path / "tuning" / "tuned.yaml")
    assert tuned.strategies["er"] == Chosen(3e-3, {}, 0.55, 0.55, 3)
    chosen = tuned.strategies["individual"]
    assert (chosen.score, chosen.default_score, chosen.trials) == (0.7, 0.3, 2)
    assert chosen.learning_rate == found.trials[-1].config.training.learning_rate != 3e-3
    assert (tuned.tasks, tuned.seeds, tuned.trials) == (["FOMC", "MedMCQA"], [100, 101], 8)


def test_a_trial_that_diverged_is_not_chosen(search, tmp_path):
    found = search({"er": 3}, seeds=(100,))
    table = found.table([None, run(0.2), run(0.1)])
    assert list(table.chosen) == [False, True, False]
    found.write(table)
    assert Tuned.read(tmp_path / "tuning" / "tuned.yaml").strategies["er"].default_score is None
    twice = search({"er": 2})
    assert list(twice.table([run(0.9), None, run(0.1), run(0.1)]).chosen) == [False, True]
    with pytest.raises(UserError, match="Expected a trial of er that ends, got 3 diverged"):
        found.write(found.table([None] * 3))


@pytest.fixture
def tried(search):
    """tried({"er": (0.003, 0.001)}) -> a search with a trial of each rate and a setting of its own, of one seed."""

    def make(rates, seeds=(100,)):
        found = search({}, seeds)
        trials = [
            Trial(replace(found.base, strategy=name, seed=seed, strategy_settings={"memory_size": 10 + number},
                          training=replace(found.base.training, learning_rate=rate)), number, len(of))
            for name, of in rates.items() for number, rate in enumerate(of) for seed in seeds
        ]  # fmt: skip
        return replace(found, trials=trials)

    return make


def in_short(trials):
    return [
        (t.config.strategy, t.number, t.config.training.learning_rate, t.config.strategy_settings["memory_size"])
        for t in trials
    ]


def test_a_best_rate_at_an_edge_is_searched_further_with_the_settings_it_was_best_with(tried):
    rates = {"er": (3e-3, 9e-3, 1e-3), "ilora": (3e-3, 9e-3, 9e-3), "der": (9e-3, 3e-3, 1e-3), "agem": (3e-3, 3e-3)}
    found = tried(rates)
    scores = [0.9, 0.1, 0.1, 0.1, 0.2, 0.9, 0.1, 0.2, 0.9, 0.1, 0.9]  # er: in the middle; agem: one rate
    table = found.table(list(map(run, scores)))
    assert in_short(further_trials(found.trials, table)) == [("ilora", 3, 0.027, 12), ("der", 3, 0.000333, 12)]
    assert not further_trials(found.trials, found.table([None] * len(scores)))
    twice = tried({"er": (1e-3, 9e-3)}, seeds=(100, 101))
    further = further_trials(twice.trials, twice.table(list(map(run, (0.1, 0.1, 0.2, 0.2)))))
    assert [t.config.seed for t in further] == [100, 101] and {t.number for t in further} == {2}


def test_a_rate_that_diverged_is_one_that_was_tried(tried):
    found = tried({"er": (3e-3, 9e-3, 1e-3)})
    assert not further_trials(found.trials, found.table([run(0.9), None, run(0.1)]))


def test_the_search_goes_on_while_the_best_rate_is_the_highest_but_not_for_ever(tried):
    """Scores rise with the rate without end: 0.027, 0.081, and then no more."""
    asked = []

    class Trained:
        def __init__(self, trial):
            self.rate, self.directory = trial.config.training.learning_rate, trial.name

        def scored_steps(self):
            asked.append(self.rate)
            return run(self.rate)
            yield

    def trained(trials):
        return [Trained(trial) for trial in trials]

    found = tried({"er": (3e-3, 9e-3), "ilora": (9e-3, 3e-3)})
    found = replace(found, trainings=trained(found.trials), trained=trained)
    table = found.carry_out()
    assert asked == [3e-3, 9e-3, 9e-3, 3e-3, 0.027, 0.027, 0.081, 0.081]
    assert list(table.strategy) == ["er"] * 4 + ["ilora"] * 4 and list(table.trial) == [0, 1, 2, 3] * 2
    assert list(table.chosen) == [False, False, False, True] * 2
    chosen = Tuned.read(f"{found.tuning.output_dir}/tuned.yaml")
    assert (chosen.strategies["er"].learning_rate, chosen.strategies["er"].trials) == (0.081, 4)
    assert chosen.strategies["ilora"].settings == {"memory_size": 10}
    assert "best of up to 4 trials" in chosen.note(["er"])


def test_only_divergence_is_survived(tmp_path):
    class Trained:
        directory = tmp_path / "trial"

        def __init__(self, error):
            self.error = error

        def scored_steps(self):
            raise self.error
            yield

    assert Engine(Here()).run([_or_diverged(Trained(DivergedError("no finite loss")))]) == [None]
    with pytest.raises(UserError, match="another"):
        Engine(Here()).run([_or_diverged(Trained(UserError("another")))])


def test_the_eval_split_is_what_is_scored_and_nobody_takes_it_for_the_test_split(
    tmp_path, run_config, make_examples, plain_model_at, tokenizer
):
    model = plain_model_at()
    examples = make_examples(4)

    def said(example):  # by transformers itself
        ids = tokenizer(example.prompt, return_tensors="pt").input_ids
        new = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        return tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)

    right = [Example(e.prompt, said(e)) for e in examples]
    wrong = [Example(e.prompt, f"{said(e)} not") for e in examples]
    tasks = [TaskData.of(Task("zeta", "en", "exact_match", 6), {"train": examples, "eval": right, "test": wrong})]
    scores = {}
    for split in ("eval", "test"):
        config = run_config("zero_shot", scored_split=split)
        train(config, tmp_path / split, tasks=tasks)
        scores[split] = FinishedRun(tmp_path / split, scored_split=split).accuracy_matrix.zeta.tolist()
    assert scores == {"eval": [1.0, 1.0], "test": [0.0, 0.0]}
    assert "scored_split" not in FinishedRun(tmp_path / "test").config
    with pytest.raises(RunDirectoryError, match=r"Expected a run scored on the test split, got .* scored on eval"):
        FinishedRun(tmp_path / "eval")
    with pytest.raises(RunDirectoryError, match="got none"):  # nor does a test run go on as the other, or it as one
        train(run_config("zero_shot"), tmp_path / "eval", tasks=tasks)


def test_refused_before_anything_is_trained(tmp_path, monkeypatch):
    where = {"output_dir": str(tmp_path / "out")}
    base = RunConfig(tasks=("FOMC",))
    with pytest.raises(UserError, match="Expected strategies that train, got zero_shot alone"):
        Tuning(("zero_shot",), **where).search(base, {})
    with pytest.raises(UserError, match="at least 1 trial, got 0"):
        Tuning(("er",), num_trials=0, **where).search(base, {})
    without = [
        TaskData.of(Task("FOMC", "en", "accuracy", 4), {"train": [Example("a", "A")], "test": [Example("a", "A")]})
    ]
    monkeypatch.setattr("mcanalysis.training.continual_trainer.load_tasks", lambda config: without)
    with pytest.raises(
        DataError, match=r"Expected an eval split of every task, .* got none of FOMC; add its eval\.json"
    ):
        Tuning(("er",), **where).search(base, {})
    assert not (tmp_path / "out").exists()


@pytest.fixture
def tuned():
    place = Tuned.place(RunConfig(), ["FOMC", "MedMCQA"])
    chosen = {"er": Chosen(1e-3, {"memory_size": 40}, 0.5, 0.4, 3), "gem": Chosen(9e-3, {"margin": 0.0}, 0.5, None, 8)}
    return Tuned("0.1.0", **place, trials=8, seeds=[100], strategies=chosen)


def test_a_file_comes_back_as_it_was_and_goes_to_the_runs_it_is_of(tuned, tmp_path):
    tuned.write(tmp_path / "tuned.yaml")
    assert Tuned.read(tmp_path / "tuned.yaml") == tuned
    own = tuned.applied(RunConfig(strategy="gem"))
    assert own.training.learning_rate == 9e-3 and own.strategy_settings == {"margin": 0.0}
    typed = tuned.applied(RunConfig(strategy="er", strategy_settings={"memory_size": 7}))
    assert typed.training.learning_rate == 1e-3 and typed.strategy_settings == {"memory_size": 7}
    assert tuned.applied(RunConfig(strategy="ewc")) == RunConfig(strategy="ewc")
    assert "at their defaults: ewc." in tuned.note(["er", "ewc", "zero_shot"])
    assert "defaults" not in tuned.note(["er", "gem", "zero_shot"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 1}, "format 2 .* got format 1"),
        ({"format": None}, "format 2 .* got format None"),
        ({"strategies": 3}, "got another"),
        ({"strategies": {"er": {"settings": {}}}}, "got another"),
        ({"strategies": {"er": 5}}, "got another"),
        ({"tasks": "FOMC"}, "tasks is no list"),
        ({"tasks": [1]}, "tasks are no names"),
        ({"model": 3}, "model is no str"),
        ({"surprise": 3}, "surprise"),
        ({"er": {"learning_rate": -1.0}}, "positive learning_rate, got -1.0"),
        ({"er": {"learning_rate": "fast"}}, "er has no settings or no learning rate"),
        ({"er": {"settings": [1]}}, "er has no settings or no learning rate"),
        ({"er": {"settings": {"memory_sise": 3}}}, "Unknown setting of er 'memory_sise'.*tuned.yaml"),
        ({"er": {"settings": {"memory_size": "many"}}}, "a number for memory_size of er"),
        ({"ert": {}}, "Unknown strategy 'ert'. Did you mean 'er'.*tuned.yaml"),
    ],
)
def test_another_file_is_refused_in_one_line(tuned, tmp_path, change, named):
    tuned.write(file := tmp_path / "tuned.yaml")
    values = yaml.safe_load(file.read_text())
    for name, value in change.items():
        if name in ("er", "ert"):
            values["strategies"][name] = {**values["strategies"]["er"], **value}
        else:
            values[name] = value
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=named) as refusal:
        Tuned.read(file)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\x00"])
def test_what_is_no_such_yaml_is_refused_in_one_line(tmp_path, text):
    (file := tmp_path / "tuned.yaml").write_text(text)
    with pytest.raises(UserError, match=r"Expected a .*file.* that tune\.py wrote at") as refusal:
        Tuned.read(file)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="No such file"):
        Tuned.read(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("config", "tasks", "named"),
    [
        (RunConfig(benchmark="trace"), ["FOMC", "MedMCQA"], "for the benchmark of this comparison, trace, got"),
        (RunConfig(model="my/base"), ["FOMC", "MedMCQA"], "model of this comparison, my/base, got those for embedded"),
        (RunConfig(), ["FOMC"], "tasks of this comparison, FOMC, got those for FOMC, MedMCQA"),
        (
            replace(RunConfig(), training=replace(RunConfig().training, num_steps=9)),
            ["FOMC", "MedMCQA"],
            "9 steps each",
        ),
        (
            replace(RunConfig(), training=replace(RunConfig().training, batch_size=2)),
            ["FOMC", "MedMCQA"],
            "of 2 example",
        ),
        (
            RunConfig(lora_rank=64),
            ["FOMC", "MedMCQA"],
            "adapter of this comparison, rank 64, α 16, got those for rank 8",
        ),
        (
            replace(RunConfig(), training=replace(RunConfig().training, schedule="constant", warmup_ratio=0.0)),
            ["FOMC", "MedMCQA"],
            "schedule of this comparison, constant, warm-up 0, .* got those for linear, warm-up 0.1",
        ),
    ],
)
def test_settings_tuned_for_other_runs_are_refused(tuned, config, tasks, named):
    with pytest.raises(UserError, match=named):
        tuned.check(config, tasks)
    tuned.check(RunConfig(), ["MedMCQA", "FOMC"])  # in any order


def test_what_was_typed_in_place_of_what_was_chosen_is_said(tuned):
    assert "in place of" not in tuned.note(["er"], {"er": {"memory_size": 40}, "ewc": {"ewc_lambda": 1.0}})
    said = tuned.note(["er"], {"er": {"memory_size": 7}})
    assert "er has memory_size 7 in place of what was chosen" in said


def test_trials_have_directories_of_their_own():
    assert Trial(RunConfig(strategy="er", seed=100), 3, 9).name == "embedded-er-seed100-trial3"
