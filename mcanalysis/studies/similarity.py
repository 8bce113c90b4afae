"""How alike the minima of a run are: in their weights, in what they compute, in what they answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from mcanalysis.errors import RunDirectoryError, UserError
from mcanalysis.evaluation.objective import Objective
from mcanalysis.evaluation.representations import compare_points, num_parts
from mcanalysis.metrics.prediction_similarity import answers_differ
from mcanalysis.metrics.representation_similarity import SMALLEST_BATCH
from mcanalysis.params.point import Point
from mcanalysis.params.spaces import space_names
from mcanalysis.params.subspace_overlap import TOLERANCE
from mcanalysis.plotting.similarity import captions, plot_similarity
from mcanalysis.plotting.style import save_figure
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.run import Opening, Run, load_run
from mcanalysis.store.atomic import write_json_atomic, write_text_atomic
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.small_files import read_json
from mcanalysis.studies.jobs import Job, run_jobs
from mcanalysis.studies.similarity_tables import (
    Link,
    Place,
    cka_rows,
    distance_rows,
    overlap_rows,
    prediction_row,
    task_links,
    weight_links,
)

TABLES = ("weight_distance", "subspace_overlap", "cka", "prediction_similarity")
_VERSION = 1  # counts up when what is computed changes, so that results of before are not used


@dataclass(frozen=True)
class SimilaritySettings:
    """The first `num_examples` of each task's test split (None: all); CKA on batches of about `batch_size` of them."""

    num_examples: int | None = 100
    batch_size: int = 128

    def __post_init__(self) -> None:
        least = SMALLEST_BATCH[True]
        if self.num_examples is not None and self.num_examples < least:
            raise UserError(
                f"Expected at least {least} examples per task for unbiased CKA, got {self.num_examples}; "
                "raise --num-examples."
            )


@dataclass(frozen=True)
class SimilarityResult:
    """The tables of all runs together, by the names of their files; `figures` are the files drawn."""

    weight_distance: pd.DataFrame
    subspace_overlap: pd.DataFrame
    cka: pd.DataFrame
    prediction_similarity: pd.DataFrame
    figures: list[Path]


def study_similarity(
    runs: Sequence[Run],
    settings: SimilaritySettings,
    *,
    workers: int = 1,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
    initializer: Callable[[], None] | None = None,
) -> SimilarityResult:
    """Compare the minima of finished runs; tables and figures go to each run's own folders.

    All pairs of a learner's minima, and the learners of an I-LoRA run with each other, are compared in their weights:
    distance and cosine in three spaces, principal angles. On the test split of each task learned so far, successive
    minima, each minimum and the base, and the learners are compared in what they compute: CKA of the hidden states per
    layer, churn of greedy answers, divergences of next-token distributions.

    What a run's `similarity/` folder already holds is not computed again; a stopped study goes on where it was.

    Raises:
        UserError: a run of a strategy whose minima are no LoRA adapters, a task with fewer than 4 examples.
        RunDirectoryError: a run with fewer than two minima. Both before anything is computed.
    """
    studied = [_Minima(run) for run in runs]
    jobs = [job for minima in studied for job in minima.missing(settings)]
    if jobs:
        run_jobs(jobs, lambda job, result: [], workers, progress, initializer, len(jobs))
    collected: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    figures: list[Path] = []
    for minima in studied:
        folder = minima.run.directory
        tables = minima.tables(settings)
        for name, table in tables.items():
            write_text_atomic(folder / "tables" / f"{name}.csv", table.to_csv(index=False))
            collected[name].append(table)
        texts = captions(tables)
        for stem, figure in plot_similarity(tables).items():
            figures += save_figure(figure, folder / "figures" / stem)
            write_text_atomic(folder / "figures" / f"{stem}.txt", texts[stem] + "\n")
        on_figure(folder / "figures" / f"similarity_cka_{minima.places[0].learner}.png")
    together = {name: pd.concat(of_runs, ignore_index=True) for name, of_runs in collected.items()}
    return SimilarityResult(**together, figures=figures)


class _Minima:
    """The minima of a run, and where the results of comparing them lie: a file for the weights and one per task."""

    def __init__(self, run: Run) -> None:
        self.run = run
        answering = run.answering_learner
        run.minima_of(answering)  # refuses strategies without adapters
        learners = [answering, *(name for name in run.learners if name != answering)]
        self.labels = {
            Place(number, learner): minimum.label
            for learner in learners
            for number, minimum in enumerate(run.minima_of(learner), start=1)
        }
        self.places = list(self.labels)
        if len(run.minima_of(answering)) < 2:
            raise RunDirectoryError(
                f"Expected a run with at least two minima, got {len(self.places)} in '{run.directory}'; "
                "train on more tasks."
            )

    @cached_property
    def keys(self) -> list[list[str]]:
        """Name and content hash of each minimum; the points themselves are not kept."""
        return [[p.name, self.run.minimum(p.number, p.learner).key] for p in self.places]

    def point(self, place: Place) -> Point:
        """The adapter of a minimum, or of the base."""
        if place.number == 0:
            return self.run.model.base_point()
        return self.run.minimum(place.number, place.learner).point

    def objective(self, number: int, settings: SimilaritySettings) -> Objective:
        """The test split of the run's task with this number, from 1."""
        return self.run.task_objective(self.run.task_names[number - 1], "test", settings.num_examples)

    def weights_file(self) -> Path:
        """Named, as all of them, by a hash of everything its contents depend on."""
        key = hash_json([_VERSION, TOLERANCE, space_names(), self.keys])
        return self.run.directory / "similarity" / f"weights-{key[:12]}.json"

    def task_file(self, number: int, settings: SimilaritySettings) -> Path:
        """The first `num_examples` are in the key by their content."""
        manifest, config = self.run.manifest, self.run.config
        base = [manifest["hashes"]["base"], config["dtype"], config.get("quantization")]
        key = hash_json([_VERSION, self.keys, self.objective(number, settings).settings_key, base, settings.batch_size])
        return self.run.directory / "similarity" / f"{number}-{self.run.task_names[number - 1]}-{key[:12]}.json"

    def missing(self, settings: SimilaritySettings) -> list[Job]:
        """A job for each result that is not there."""
        run = self.run
        jobs = [] if self.weights_file().exists() else [Job(_compare_weights, (run.directory, run.opening))]
        for number, task in enumerate(run.task_names, start=1):
            found = len(self.objective(number, settings).encoded)
            if found < SMALLEST_BATCH[True]:
                raise UserError(
                    f"Expected at least {SMALLEST_BATCH[True]} test examples of {task} for unbiased CKA, got {found}; "
                    "train on tasks with more."
                )
            if not self.task_file(number, settings).exists():
                jobs.append(Job(_compare_on_task, (run.directory, run.opening, number, settings)))
        return jobs

    def told(self, link: Link) -> dict[str, Any]:
        """The columns that say what is compared."""
        return {
            "comparison": link.comparison,
            "start": self.labels.get(link.start, "0-base"),
            "start_learner": link.start.learner,
            "end": self.labels[link.end],
            "end_learner": link.end.learner,
        }

    def tables(self, settings: SimilaritySettings) -> dict[str, pd.DataFrame]:
        """The four tables, by name, from what is stored."""
        whose = {"strategy": self.run.strategy, "seed": self.run.seed}
        rows: dict[str, list[dict]] = {name: [] for name in TABLES}
        for name, stored in read_json(self.weights_file()).items():
            rows[name] = [whose | row for row in stored]
        names = self.run.task_names
        found = [read_json(self.task_file(number, settings)) for number in range(1, len(names) + 1)]
        for link in task_links(self.places):
            now = link.end.number
            of_tasks = [of_task[f"{link.start.name} {link.end.name}"] for of_task in found[:now]]
            shown = {name: ("old", [values]) for name, values in zip(names[: now - 1], of_tasks, strict=False)}
            shown[names[now - 1]] = ("new", of_tasks[-1:])
            if now > 1:
                shown["mean_old"] = ("old", of_tasks[:-1])
            for task, (role, values) in shown.items():
                told = whose | self.told(link) | {"task": task, "role": role, "split": "test"}
                rows["cka"] += cka_rows(told, values)
                rows["prediction_similarity"].append(prediction_row(told, values))
        return {name: pd.DataFrame(rows[name]) for name in TABLES}


@lru_cache(maxsize=1)
def _opened(directory: Path, opening: Opening) -> _Minima:
    """A worker's run, with its model and data, for its successive jobs."""
    return _Minima(load_run(directory, *opening))


def _compare_weights(directory: Path, opening: Opening, progress: Progress) -> None:
    minima = _opened(directory, opening)
    links = weight_links(minima.places)
    bar = progress(total=len(links), desc=f"weights {minima.run.strategy} (seed {minima.run.seed})")
    points = {place: minima.point(place) for place in minima.places}
    rows: dict[str, list[dict]] = {"weight_distance": [], "subspace_overlap": []}
    for link in links:
        pair = points[link.start], points[link.end]
        rows["weight_distance"] += [minima.told(link) | row for row in distance_rows(*pair)]
        rows["subspace_overlap"] += [minima.told(link) | row for row in overlap_rows(*pair)]
        bar.update(1)
    bar.close()
    write_json_atomic(minima.weights_file(), rows)


def _compare_on_task(
    directory: Path, opening: Opening, number: int, settings: SimilaritySettings, progress: Progress
) -> None:
    minima = _opened(directory, opening)
    run, objective = minima.run, minima.objective(number, settings)
    links = [link for link in task_links(minima.places) if link.end.number >= number]
    places = sorted({place for link in links for place in (link.start, link.end)})
    total = len(places) + num_parts(objective.encoded, settings.batch_size)
    bar = progress(total=total, desc=f"similarity {run.strategy} {objective.name}")
    points = {place.name: minima.point(place) for place in places}
    answers = {}
    for name, point in points.items():
        answers[name] = run.engine.evaluate(point, [objective])[0].outputs
        bar.update(1)
    pairs = list(dict.fromkeys((link.start.name, link.end.name) for link in links))
    compared = compare_points(
        run.model, points, pairs, objective.encoded, batch_size=settings.batch_size, on_batch=lambda: bar.update(1)
    )
    bar.close()
    stored = {
        " ".join(pair): {
            "cka": [cka.value() for cka in found.cka],
            "cka_error": [cka.standard_error() for cka in found.cka],
            "churn": answers_differ(answers[pair[0]], answers[pair[1]]),
            "kl": found.kl,
            "reverse_kl": found.reverse_kl,
            "js": found.js,
            "targets": found.targets,
        }
        for pair, found in compared.items()
    }
    write_json_atomic(minima.task_file(number, settings), stored)
