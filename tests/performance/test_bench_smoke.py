"""Every workload runs at its least size; what it measures then means nothing and is not looked at."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import bench_accelerator
import bench_accelerator_evaluation
import bench_points_memory
import bench_training_overhead
import bench_training_steps
import numpy as np
import peers
import plain_training
import points
import pytest
import torch
from engine_way import engine_way
from matrix_products import Products, floor_seconds, record
from raw_numbers import write_raw_numbers
from report import section_text, summary, write_sections
from setups import embedded_examples, embedded_model, in_mid_sequence
from step_parts import ENGINE, MLP, TEACHER, exclusive_seconds
from timing import StepCosts, recording, take_turns, train_steps
from workload import Aim, Section, Table, Workload, workload_names

from mcanalysis.models.encoding import collate
from mcanalysis.training.config import TrainingConfig

FOLDER = Path(__file__).parent


def bench(*arguments):
    command = [sys.executable, str(FOLDER), "--quick", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_workload_writes_its_section(tmp_path):
    output = tmp_path / "B.md"
    done = bench("--output", str(output))
    assert done.returncode == 0, done.stderr
    text = output.read_text(encoding="utf-8")
    for name in workload_names():
        section = text.partition(f"<!-- begin {name} -->")[2].partition(f"<!-- end {name} -->")[0]
        assert "| aim | limit | measured |  |" in section, name
        assert "nan" not in section, name
    assert list(json.loads((tmp_path / "B.json").read_text(encoding="utf-8"))) == workload_names()


def test_quick_leaves_the_report_alone():
    done = bench()
    assert done.returncode == 2
    assert "--output" in done.stderr


def test_a_section_takes_the_place_of_its_older_one(tmp_path):
    file = tmp_path / "B.md"
    write_sections(file, {"b": "old b", "a": "old a"})
    write_sections(file, {"b": "new\n\nb", "c": "c"})
    text = file.read_text(encoding="utf-8")
    assert text.count("# Benchmarks") == 1
    assert [text.count(t) for t in ("old a", "old b", "new\n\nb")] == [1, 0, 1]
    assert text.index("old a") < text.index("new\n\nb") < text.index("begin c")


def test_all_aims_stand_in_one_table_on_top(tmp_path):
    def text(title, *aims):
        section = Section(aims, [Table("More.", [["aim", "x"], ["1", "2"]])])
        return section_text(Workload("w", title, lambda _: section), section, "Now, here.", 1.0, "make bench")

    one = text("W2: one", Aim("speed", 2.0, 3.0, at_most=False, detail="(2.9 to 3.1)"), Aim("memory", 1.0, 1.5))
    file = tmp_path / "B.md"
    write_sections(file, {"x": text("Another", Aim("time", 1.0, None)), "y": one})
    top = file.read_text(encoding="utf-8").partition("<!-- begin")[0]
    assert "Aims: 1 met, 1 missed, 1 not measured." in top
    rows = [line for line in top.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| W2: one | speed | ≥ 2.00 | 3.00 (2.9 to 3.1) | met |",
        "|  | memory | ≤ 1.00 | 1.50 | missed |",
        "| Another | time | ≤ 1.00 | – | not measured |",
    ]
    assert "Aims: 0 met" in summary([])


def test_the_numbers_of_every_turn_are_kept(tmp_path):
    file = tmp_path / "B.json"
    section = Section([Aim("speed", 2.0, 3.0, at_most=False)], [Table("More.", [["a"], ["1"]])])
    ways = {"ours": iter([1.0, 2.0]).__next__, "theirs": lambda: StepCosts(*np.ones((4, 2)))}
    for name in ("a", "b", "a"):  # the second "a" takes the place of the first
        with recording() as turns:
            take_turns(ways, 1 if name == "b" else 0)
        write_raw_numbers(file, Workload(name, f"Of {name}", lambda _: section), section, "Now, here.", turns)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert list(found) == ["a", "b"]
    assert found["a"]["turns"] == [{"ours": [], "theirs": []}]
    assert found["b"]["turns"][0]["ours"] == [1.0]
    assert found["b"]["turns"][0]["theirs"][0]["wall"] == [1.0, 1.0]
    assert (found["b"]["title"], found["b"]["aims"][0]["verdict"]) == ("Of b", "met")
    assert found["b"]["tables"] == [{"caption": "More.", "rows": [["a"], ["1"]]}]


def test_every_way_along_a_path_measures_the_same():
    case = points.embedded_case(2, 5)
    ts = [0.5, 1.0]
    ways = [engine_way(case), points.peft_by_hand(case), points.peft_by_hand(case, length=64, size=3)]
    ways.append(points.trainer_evaluate(case))  # one batch per task, so that its mean is the tokens' mean
    engine, *others = [way(ts) for way in ways]
    assert engine.shape == (2, 2) and len(np.unique(engine.round(4))) == 4
    for losses in others:
        np.testing.assert_allclose(losses, engine, atol=1e-5)


@pytest.mark.slow
def test_peers_from_the_package_index_measure_the_same():
    case = points.embedded_case(2, 5)
    before = [p for p in sys.path if "bench-peers" in p]
    way = points.loss_landscapes_way(case)
    assert [p for p in sys.path if "bench-peers" in p] == before
    np.testing.assert_allclose(way(2), engine_way(case)([0.5, 1.0]), atol=1e-5)


def test_a_peer_that_is_not_there_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "FOLDER", tmp_path / "none")
    monkeypatch.setattr(peers, "may_install", False)
    with pytest.raises(peers.PeerMissingError, match="installs nothing"):
        points.loss_landscapes_way(points.embedded_case(1, 2))
    assert not (tmp_path / "none").exists()


def test_matrix_products_are_counted():
    q = torch.randn(2, 4, 5, 8)
    with Products() as seen:
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        torch.nn.functional.linear(torch.randn(2, 3, 8), torch.randn(16, 8))
    # per head the 15 pairs on and below the diagonal, scores and values
    assert seen.attention == 2 * 4 * 15 * 2 * (8 + 8)
    assert dict(seen.linear) == {(6, 8, 16): 1}
    assert seen.operations == seen.attention + 2 * 6 * 8 * 16


def test_the_backward_pass_of_attention_is_counted_as_five_products():
    q, k, v = (torch.randn(2, 4, 5, 8, requires_grad=True) for _ in range(3))
    with Products() as seen:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
    assert seen.attention == (2 + 5) * 2 * 4 * 15 * 2 * 8


def test_the_same_batches_are_trained_on_with_and_without_this_trainer():
    model = embedded_model()
    start, settings = model.point(), TrainingConfig(num_steps=2, batch_size=4)
    examples = bench_training_overhead._examples(model, 8)
    batches = bench_training_overhead._witnessed(model, examples, settings)
    model.load_point(start)
    ours = train_steps(model, bench_training_overhead._strategy(model), examples, settings).losses
    steps = plain_training.steps_as_ours(examples, settings)
    assert [torch.equal(collate(s, 0).input_ids, b.input_ids) for s, b in zip(steps, batches, strict=True)] == [
        True
    ] * 2
    model.load_point(start)
    optimizer = torch.optim.AdamW([p for p in model.network.parameters() if p.requires_grad], lr=1e-3)
    first = [plain_training.bare_step(model.network, batches[0], optimizer), ours[0]]
    model.load_point(start)
    with torch.no_grad():
        first.append(float(model.network(**points.right_padded(steps[0], 0), use_cache=False).loss))
    assert first == pytest.approx([first[2]] * 3, rel=1e-5)
    told = []
    plain_training.train_by_hand(model.network, steps, 0, lambda: told.append(1))
    assert len(told) == 2 and any(bool((p != start[n]).any()) for n, p in model.point().items())


def test_the_floor_counts_every_layer_of_a_pass():
    case = points.embedded_case(1, 3)
    products = record(lambda: points.peft_by_hand(case)([0.5]))
    tokens = 3 * max(len(e) for e in case.examples[0])
    width, mlp, vocabulary, rank = 128, 384, 4096, 8
    weights = 3 * (4 * width**2 + 3 * width * mlp + 4 * 2 * rank * width) + width * vocabulary
    assert products.operations - products.attention == 2 * tokens * weights
    assert 0 < floor_seconds(products, seconds=0.002) < 10


def test_memory_is_counted_while_it_lives():
    with bench_points_memory.Alive() as alive:
        kept = torch.ones(1000)
        assert alive.now == 4000
        view = kept[:10] + 0
        assert alive.now == 4040
        del kept, view
        other = torch.ones(500)
        alive.paused = True
        other = [other, torch.ones(10_000)]
    assert alive.now == 2000 and alive.most == 4040
    del other
    assert alive.now == 0


def test_time_is_told_apart_by_part():
    def event(name, start, end, sequence=-1):
        return SimpleNamespace(name=name, sequence_nr=sequence, time_range=SimpleNamespace(start=start, end=end))

    seconds = exclusive_seconds(
        [
            event(f"part/{MLP}", 0, 10e6),
            event("aten::linear", 1e6, 4e6, 7),
            event("part/other", 5e6, 7e6),
            event(f"part/{TEACHER}", 20e6, 30e6),
            event(f"part/{MLP}", 21e6, 25e6),  # the teacher's own layers are the teacher's
            event(f"part/{ENGINE}", 40e6, 50e6),
            event("autograd::engine::evaluate_function: MmBackward0", 41e6, 47e6, 7),
        ]
    )
    assert seconds == pytest.approx({MLP: 8 + 6, "other": 2, TEACHER: 10, ENGINE: 4})


def test_strategies_are_timed_on_the_same_rows():
    model = embedded_model()
    *earlier, examples = embedded_examples(model.tokenizer, 30).values()
    start, rows = model.point(), {}
    for name in bench_training_steps.STRATEGIES:
        model.load_point(start)
        strategy = in_mid_sequence(name, model, [e for task in earlier for e in task], examples)
        seen = rows[name] = []
        loss = strategy.loss

        def witness(step, seen=seen, loss=loss):
            seen.append((step.batch.input_ids, step.num_current))
            return loss(step)

        strategy.loss = witness
        train_steps(model, strategy, examples, TrainingConfig(3, 4))
    for (alone, _), (er, num_current), (ilora, _) in zip(*rows.values(), strict=True):
        assert num_current == 4 and len(er) == 8
        assert torch.equal(er, ilora)
        assert torch.equal(alone[:, -20:], er[:4, -20:])


def test_the_padded_way_computes_the_same_loss():
    model = embedded_model()
    examples = embedded_examples(model.tokenizer, 4)["MeetingBank"]
    padded = model.peft(**points.right_padded(examples, 0, 96), use_cache=False).loss
    result = model.forward(collate(examples, 0))
    assert padded.item() == pytest.approx((result.nll.sum() / result.num_targets.sum()).item(), rel=1e-5)


TINY = bench_accelerator.Shape("tiny", 32, 64, 2, 4, 2, rows=4, vocabulary=300)


@pytest.mark.slow
def test_the_accelerator_part_runs_on_a_cpu_too(monkeypatch):
    # so that what can only be measured elsewhere is at least known to run
    fits = iter([False, True])
    monkeypatch.setattr(bench_accelerator, "_fits", lambda *_: next(fits))
    monkeypatch.setattr(bench_accelerator, "SHAPES", (TINY,))
    seen = bench_accelerator.train_shape(
        bench_accelerator.Shape(**{**vars(TINY), "rows": 8}), "cpu", num_steps=3, length=12, answer=2
    )
    assert [(t.strategy, t.rows) for t in seen] == [(s, 4) for s in bench_accelerator.STRATEGIES]
    rate = bench_accelerator.matmul_rate("cpu", 64)
    for one in seen:
        assert 0 < one.tokens_per_second < float("inf")
        assert all("nan" not in cell for cell in bench_accelerator._cells(one, rate))
    # 4 N per trained token, 4 H per answer token, 2 N per replayed token more for I-LoRA
    body, head = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64), 300 * 32
    operations = [t.flops_per_second / t.tokens_per_second * 4 * 12 for t in seen]
    plain = 4 * body * 4 * 12 + 4 * head * 4 * 2
    assert operations == pytest.approx([plain, plain, plain + 2 * body * 2 * 12])


@pytest.mark.slow
def test_the_accelerator_evaluation_runs_on_a_cpu_too():
    shape = bench_accelerator.Shape(**{**vars(TINY), "vocabulary": 4096})
    one, *_ = bench_accelerator_evaluation.evaluate_shape(
        shape, "cpu", 1, length=12, answer=2, num_examples=3, num_points=2
    )
    body, head = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64), 4096 * 32
    assert one.tokens == 2 * 3 * 12
    assert one.operations == 2 * body * one.tokens + 2 * head * 2 * 3 * 2
    assert all("nan" not in cell for cell in one.cells(1e9))


def test_too_many_rows_are_noticed(monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError

    model = bench_accelerator.random_llama(TINY, "cpu", 12)
    assert next(model.base.parameters()).dtype == torch.bfloat16
    assert bench_accelerator._fits(model, TINY, 4, 12, 2)
    monkeypatch.setattr(bench_accelerator, "_train", out_of_memory)
    assert not bench_accelerator._fits(model, TINY, 4, 12, 2)


def test_the_same_device_gives_the_same_losses():
    assert bench_accelerator.loss_gap("ilora", "cpu", 3) == 0.0
