"""Run folders written by hand, so that what a page must show is known without the code that measures; a browser."""

import csv
import json
import shutil

import pytest

from mcanalysis.benchmarks import load_benchmark

TASKS = ("zeta", "中文任务", "omega")
HOSTILE = ("<script>window.hacked=1<!--", '"><img src=x onerror=window.hacked=1>', "<a href='https:x.invalid'>%{x} $a$")
MATRIX = ((0.0, 0.1, 0.2), (0.9, 0.11, 0.21), (0.4, 0.8, 0.22), (0.3, 0.6, 0.7))
TS = (0.0, 0.5, 1.0)


def _write_csv(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _loss(start, path, task, t):
    """A value that says where it comes from."""
    return round(start + 0.1 * len(task) + (0.01 if path == "bezier" else 0.5) * t * (1 - t), 6)


def _profiles(strategy, labels, tasks):
    rows = []
    for k in range(1, len(tasks)):
        for path in ("linear", "bezier"):
            for split in ("eval", "test"):
                for t in TS:
                    for task in (*tasks[: k + 1], "mean_old", "mean"):
                        loss = _loss(k, path, task, t) + (9 if split == "eval" else 0)
                        values = {"loss": loss, "loss_low": loss - 0.1, "loss_high": loss + 0.1}
                        values |= {"score": 1 / (1 + loss), "score_low": 0.01, "score_high": 0.99}
                        key = {"strategy": strategy, "learner": "fast", "seed": 0, "space": "factor", "path": path}
                        key |= {"start": labels[k - 1], "end": labels[k], "split": split, "t": t, "task": task}
                        rows.append(key | values)
    return rows


def _barriers(strategy, labels, tasks):
    rows = []
    for k in range(1, len(tasks)):
        for path in ("linear", "bezier"):
            for task in (*tasks[: k + 1], "mean_old", "mean"):
                for quantity in ("loss", "score"):
                    row = {"strategy": strategy, "learner": "fast", "seed": 0, "space": "factor", "path": path}
                    row |= {"start": labels[k - 1], "end": labels[k], "task": task, "split": "test"}
                    height = (0.125 if path == "linear" else 0.0025) * (3 - k) + 0.01 * len(task)
                    row["quantity"] = quantity
                    gain = task == "mean" and quantity == "score"
                    for name in ("chord_barrier", "mean_barrier", "max_barrier", "chord_dip"):
                        row |= {name: height, f"{name}_low": height - 0.001, f"{name}_high": height + 0.001}
                    for name, value in (("interpolation_gain", 0.25), ("t_star", 0.5)):
                        row |= {f"{name}{end}": value if gain else "" for end in ("", "_low", "_high")}
                    rows.append(row)
    return rows


def _landscape(strategy, labels, tasks):
    rows = []
    corners = {(0.0, 0.0): f"{labels[0]} fast", (2.0, 0.0): f"{labels[1]} fast", (1.0, 1.0): f"{labels[1]} slow"}
    nodes = [(x, y, "") for y in (-1.0, 0.0, 1.0) for x in (-1.0, 0.0, 1.0, 2.0)]
    for x, y, anchor in nodes + [(*place, name) for place, name in corners.items()]:
        for task in (*tasks[:2], "mean_old", "mean"):
            lost = (x, y) == (-1.0, -1.0) and not anchor
            row = {"strategy": strategy, "learner": "fast", "seed": 0, "space": "factor", "kind": "plane"}
            row |= {"start": labels[0], "end": labels[1], "direction": "", "x": x, "y": y, "anchor": anchor}
            row |= {"task": task, "split": "test", "loss": "inf" if lost else 1 + x * x + 2 * y * y + x * y}
            rows.append(row | {"score": 1 / (2 + x * x + y * y)})
    return rows


@pytest.fixture(scope="session")
def make_run():
    """make_run(folder, tasks=…, strategy=…, measured=…) -> the folder, now a finished run with known values."""

    def make(folder, tasks=TASKS, strategy="sequential", measured=True, seed=0, status="finished", matrix=MATRIX):
        labels = [f"{k}-{task}" for k, task in enumerate(tasks, start=1)]
        data_dir = folder.parent / f"{folder.name}-data"
        for task in tasks:
            for split, start in (("train", 0), ("eval", 10), ("test", 20)):
                examples = [
                    {"prompt": f"{task} ask {start + i}", "answer": f"{task} say {start + i}"} for i in range(3)
                ]
                file = data_dir / task / f"{split}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(examples), encoding="utf-8")
        scores = dict.fromkeys(tasks, "exact_match")
        data = load_benchmark("trace", str(data_dir), tuple(tasks), scores, None)
        config = {
            "strategy": strategy, "strategy_settings": {}, "seed": seed, "model": "embedded", "benchmark": "trace",
            "data_dir": str(data_dir), "tasks": list(tasks), "scores": scores, "sizes": {}, "num_test": None,
            "lora_rank": 8, "training": {"num_steps": 7, "max_length": 64}, "target_modules": [tasks[0], "q_proj"],
        }  # fmt: skip
        manifest = {
            "status": status, "created": "2026-01-02T03:04:05Z", "finished": "2026-01-02T04:04:05Z", "config": config,
            "seed": seed, "hashes": {"base": "b" * 64, "data": {d.task.name: d.content_hash for d in data}},
            "versions": {"python": "3.11.7", "torch": tasks[0]}, "git_commit": "c" * 40,
            "execution": {"device": tasks[1]},
        }  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        rows = [{"after": k, **dict(zip(tasks, row, strict=True))} for k, row in enumerate(matrix)]
        _write_csv(folder / "tables/accuracy_matrix.csv", rows)
        learner = "base" if strategy == "zero_shot" else "fast"
        metrics = {"average_accuracy": 0.5333, "backward_transfer": -0.4, "forgetting": 0.4, "learning_accuracy": 0.8}
        (folder / "tables/metrics.json").write_text(json.dumps({**metrics, "learners": {learner: metrics}}))
        for label in labels if strategy != "zero_shot" else ():
            adapter = folder / "minima" / label / learner / "adapter_config.json"
            adapter.parent.mkdir(parents=True)
            adapter.write_text(json.dumps({"peft_type": "LORA"}))
        cost = {"train_seconds": 125.2, "evaluation_seconds": 1.0, "peak_memory_bytes": 750e6}
        (folder / "tables/cost.json").write_text(json.dumps(cost))
        stages = ["0-base", *(f"{label}-fast" for label in labels)]
        (folder / "generations").mkdir()
        for k, stage in enumerate(stages):
            outputs = {
                t: [f"{t} say {20 + i}" if k == j else f"{t} {stage} {i}" for i in range(3)]
                for j, t in enumerate(tasks, 1)
            }
            (folder / f"generations/{stage}.json").write_text(json.dumps(outputs), encoding="utf-8")
        if measured:
            _write_csv(folder / "tables/profiles.csv", _profiles(strategy, labels, tasks))
            _write_csv(folder / "tables/barriers.csv", _barriers(strategy, labels, tasks))
            _write_csv(folder / "tables/landscape.csv", _landscape(strategy, labels, tasks))
            walk = {"strategy": strategy, "seed": 0, "space": "factor", "start": labels[0], "end": labels[1]}
            walk |= {"learner": tasks[0], "task": labels[1], "distance": 0.1}
            steps = [{**walk, "step": s, "x": s / 5, "y": 0.02 * s} for s in range(0, 11, 5)]
            _write_csv(folder / "tables/trajectory.csv", steps)
        return folder

    return make


@pytest.fixture(scope="session")
def run_folder(make_run, tmp_path_factory):
    """A run in which everything is measured, with a task of Chinese name."""
    return make_run(tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="session")
def hostile_folder(make_run, tmp_path_factory):
    """The same with names, prompts, answers and settings that try to break out of the page."""
    return make_run(tmp_path_factory.mktemp("runs") / "hostile", HOSTILE)


@pytest.fixture(scope="session")
def browser():
    """Chromium, without a window; skips where it or Playwright is not there."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright (extra test)")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    software = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=software)
        yield started
        started.close()
