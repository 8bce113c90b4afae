"""Every workload runs at its least size; what it measures then means nothing and is not looked at."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import bench_accelerator
import bench_padding
import bench_training_steps
import pytest
import torch
from report import write_sections
from setups import embedded_examples, embedded_model, in_mid_sequence
from step_parts import ENGINE, MLP, TEACHER, exclusive_seconds
from timing import train_steps
from workload import workload_names

from mcanalysis.models.encoding import collate
from mcanalysis.training.config import TrainingConfig

FOLDER = Path(__file__).parent


def bench(*arguments):
    command = [sys.executable, str(FOLDER), "--quick", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_workload_writes_its_section(tmp_path):
    output = tmp_path / "B.md"
    done = bench("--output", str(output))
    assert done.returncode == 0, done.stderr
    text = output.read_text(encoding="utf-8")
    for name in workload_names():
        section = text.partition(f"<!-- begin {name} -->")[2].partition(f"<!-- end {name} -->")[0]
        assert "| aim | limit | measured |  |" in section, name
        assert "nan" not in section, name


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
    padded = model.peft(**bench_padding._pad(examples, 96, 0), use_cache=False).loss
    result = model.forward(collate(examples, 0))
    assert padded.item() == pytest.approx((result.nll.sum() / result.num_targets.sum()).item(), rel=1e-5)


TINY = bench_accelerator.Shape("tiny", 32, 64, 2, 4, 2, rows=4, vocabulary=300)


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
