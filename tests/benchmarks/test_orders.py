"""Orders by name: those of the papers, seeded permutations, and what does not exist."""

import json

import pytest

from mcanalysis.benchmarks import get_benchmark, load_benchmark
from mcanalysis.benchmarks.orders import in_order, order_names
from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.studies.comparison import Comparison
from mcanalysis.studies.strategies import run_name
from mcanalysis.tasks import SPLITS
from mcanalysis.training.config import RunConfig

# Table 7 of O-LoRA's paper (arXiv 2310.14152), with today's names.
PAPER = {
    "order1": "dbpedia amazon yahoo agnews",
    "order2": "dbpedia amazon agnews yahoo",
    "order3": "yahoo amazon agnews dbpedia",
    "order4": "mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia agnews multirc yahoo",
    "order5": "multirc boolq wic mnli cb copa qqp rte imdb sst2 dbpedia agnews yelp amazon yahoo",
    "order6": "yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews yahoo multirc boolq wic",
}


@pytest.fixture
def folder(tmp_path):
    """Four tasks in TRACE's form."""
    for name in ("Zebra", "FOMC", "C-STANCE", "Py150"):
        (tmp_path / name).mkdir()
        for split in SPLITS:
            rows = [{"prompt": f"{name} {split}", "answer": "A"}]
            (tmp_path / name / f"{split}.json").write_text(json.dumps(rows))
    return tmp_path


def names(loaded):
    return [data.task.name for data in loaded]


def test_the_published_orders_are_those_of_the_papers():
    found = get_benchmark("standard").orders | get_benchmark("long").orders
    assert {name: " ".join(tasks) for name, tasks in found.items()} == PAPER
    first, second = get_benchmark("superni").orders.values()
    assert sorted(first) == sorted(second) and len(set(first)) == 15
    assert (first[0], second[0]) == ("task1572_samsum_summary", "task748_glucose_reverse_cause_event_detection")
    assert first[-1] == second[-1] == "task875_emotion_classification"


def test_a_number_of_orders_is_the_published_ones_and_then_permutations():
    standard = get_benchmark("standard")
    assert order_names(standard, 2) == ("order1", "order2")
    assert order_names(standard, 5) == ("order1", "order2", "order3", "shuffled1", "shuffled2")
    with pytest.raises(UserError, match=r"at least 1 order, got 0; raise --num-orders\."):
        order_names(standard, 0)
    embedded, two = get_benchmark("embedded"), ("FOMC", "MedMCQA")  # of which "paper" and "shuffled1" are one sequence
    assert in_order(embedded, "shuffled1", two) == list(two)
    chosen = Comparison(("er",), (0,), num_orders=2).configs(RunConfig(tasks=two), {})
    assert [in_order(embedded, c.order, two) for c in chosen] == [["FOMC", "MedMCQA"], ["MedMCQA", "FOMC"]]
    with pytest.raises(UserError, match="at most 2 orders of 2 tasks, got 3"):
        order_names(embedded, 3, two)


def test_shuffled_orders_are_permutations_that_seed_and_names_alone_decide(folder):
    trace, tasks = get_benchmark("trace"), ["C-STANCE", "FOMC", "Py150", "Zebra"]
    orders = [in_order(trace, f"shuffled{n}", tasks) for n in range(1, 9)]
    assert all(sorted(order) == tasks for order in orders)
    assert len(set(map(tuple, orders))) > 4
    assert in_order(trace, "shuffled1", tasks[::-1]) == orders[0]
    assert names(load_benchmark("trace", folder, order="shuffled1")) == orders[0]


def test_tasks_name_and_the_order_orders(folder):
    assert names(load_benchmark("trace", folder, ["Py150", "FOMC"])) == ["Py150", "FOMC"]
    assert names(load_benchmark("trace", folder, ["Py150", "FOMC"], order="paper")) == ["FOMC", "Py150"]
    with pytest.raises(UserError, match=r"tasks of the order 'paper' \(C-STANCE, .*\), got Zebra; leave it out"):
        load_benchmark("trace", folder, ["Zebra", "FOMC"], order="paper")


@pytest.mark.parametrize("order", ["order4", "shuffled0", "shuffled", "shuffled1x", "Shuffled1", ""])
def test_an_order_that_does_not_exist_is_refused(order):
    with pytest.raises(UnknownNameError, match=r"order of the benchmark 'standard' '.*Expected one of: order1, ") as e:
        load_benchmark("standard", "nowhere", order=order)
    assert "\n" not in str(e.value)


def test_run_directories_and_configurations_tell_orders_apart():
    base = RunConfig(benchmark="standard")
    configs = Comparison(("er",), (0, 1), order=("order2", "shuffled1")).configs(base, {})
    assert [run_name(c) for c in configs] == [
        "standard-order2-er-seed0", "standard-order2-er-seed1", "standard-shuffled1-er-seed0",
        "standard-shuffled1-er-seed1",
    ]  # fmt: skip
    assert [c.resolved()["order"] for c in configs[1:3]] == ["order2", "shuffled1"]
    assert RunConfig.from_resolved(configs[0].resolved()).order == "order2"
    counted = Comparison(("er",), (0,), num_orders=4).configs(base, {})
    assert [c.order for c in counted] == ["order1", "order2", "order3", "shuffled1"]


def test_without_an_order_a_configuration_is_that_of_earlier_versions():
    assert "order" not in RunConfig().resolved()
    assert run_name(RunConfig()) == "embedded-ilora-seed0"
    assert RunConfig.from_resolved(RunConfig().resolved()).order is None


def test_a_comparison_refuses_what_cannot_be_ordered_before_anything_is_trained():
    base = RunConfig(benchmark="standard", tasks=("yelp", "amazon"))
    with pytest.raises(UserError, match="Expected --order or --num-orders, got both"):
        Comparison(order=("order1",), num_orders=2).configs(base, {})
    with pytest.raises(UserError, match="got yelp; leave it out"):
        Comparison(order=("order1",)).configs(base, {})
    with pytest.raises(UnknownNameError, match="Did you mean 'order1'"):
        Comparison(order=("oder1",)).configs(base, {})
