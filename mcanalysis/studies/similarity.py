"""How alike the minima of a run are: in their weights, in what they compute, in what they answer.

A result is one file in `<run>/similarity/`, one for the weights and one per task, named by a hash of everything that it
depends on. What loads torch or draws is imported where it is used: the settings are read for `--help`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from mcanalysis.errors import RunDirectoryError, UserError
from mcanalysis.numbers_as_text import cell
from mcanalysis.progress import Progress
from mcanalysis.settings import OR_ALL
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.results import JsonResult
from mcanalysis.studies.engine import Piece, Steps
from mcanalysis.studies.study import Rows, Setting, Study, Tables

if TYPE_CHECKING:
    from mcanalysis.evaluation.objective import Objective
    from mcanalysis.params.point import Point
    from mcanalysis.plotting.picture import Picture
    from mcanalysis.runs.run import Opening, Run
    from mcanalysis.studies.similarity_tables import Link, Place

TABLES = ("weight_distance", "subspace_overlap", "cka", "prediction_similarity")
_VERSION = 1  # counts up when what is computed changes, so that results of before are not used


@dataclass(frozen=True)
class Similarity(Study):
    """How alike the minima of runs are: in their weights, in their hidden states, in their answers.

    All pairs of a learner's minima, and the learners of an I-LoRA run with each other, are compared in their weights:
    distance and cosine in three spaces, principal angles. On the first `num_examples` of the test split (None: all) of
    each task learned so far, successive minima, each minimum and the base, and the learners are compared in what they
    compute: CKA of the hidden states per layer, on batches of about `batch_size` examples, churn of greedy answers,
    divergences of next-token distributions.

    Tables: `weight_distance`, `subspace_overlap`, `cka`, `prediction_similarity`.
    """

    num_examples: Annotated[int | None, "test examples per task, or 'all'", OR_ALL] = 100
    batch_size: int = 128

    def __post_init__(self) -> None:
        least = _fewest_examples()
        if self.num_examples is not None and self.num_examples < least:
            raise UserError(
                f"Expected at least {least} examples per task for unbiased CKA, got {self.num_examples}; "
                "raise --num-examples."
            )

    def check(self, num_minima: int) -> None:
        """Raises `UserError` for a run of one task."""
        if num_minima < 2:
            raise UserError(f"Expected a run with at least two minima, got {num_minima}: train on more --tasks.")

    def measure(self, run: Run, setting: Setting) -> Steps[Tables]:
        """One piece for the weights and one per task.

        Raises `UserError` for a strategy whose minima are no LoRA adapters and a task of fewer than 4 examples,
        `RunDirectoryError` for a run with fewer than two minima.
        """
        minima = _Minima(run, self)
        results: list[tuple[JsonResult, Callable[..., Any], tuple[int, ...]]] = [
            (minima.weights_result(), _compare_weights, ())
        ]
        for number, task in enumerate(run.task_names, start=1):
            found = len(minima.objective(number).encoded)
            if found < _fewest_examples():
                raise UserError(
                    f"Expected at least {_fewest_examples()} test examples of {task} for unbiased CKA, got {found}; "
                    "train on tasks with more."
                )
            results.append((minima.task_result(number), _compare_on_task, (number,)))
        name = f"similarity of {run.directory.name}"
        weights, *of_tasks = yield [
            Piece(str(kept.file), compare, (run.opening, self, *arguments), kept, name=name)
            for kept, compare, arguments in results
        ]
        return minima.tables(weights, of_tasks)

    def pictures(self, tables: Tables) -> Iterator[Picture]:
        from mcanalysis.plotting.picture import Picture
        from mcanalysis.plotting.similarity import captions, plot_similarity

        texts = captions(tables)
        for stem, figure in plot_similarity(tables).items():
            yield Picture(stem, figure, {}, texts[stem])

    def words(self, tables: Tables) -> Iterator[str | Rows]:
        """Per step from minimum to minimum: how far in the weights, how differently earlier tasks are answered."""
        weights, predictions, cka = (tables[n] for n in ("weight_distance", "prediction_similarity", "cka"))
        chosen = weights[(weights.space == "delta") & (weights.module == "all")]
        chosen = chosen[chosen.comparison.isin(["successive", "learners"])]
        link = ["strategy", "seed", "comparison", "start", "start_learner", "end", "end_learner"]
        of_old = predictions[predictions.task == "mean_old"].set_index(link)
        lowest = cka[cka.task == "mean_old"].groupby(link).cka.min()
        overlaps = tables["subspace_overlap"].groupby([*link, "side"]).overlap.mean()
        for (strategy, seed), of_run in chosen.groupby(["strategy", "seed"], sort=False):
            head = "from,to,‖ΔW_b − ΔW_a‖,relative,cosine,overlap: out,in,lowest CKA,churn,KL"
            rows: Rows = [list(map(str, head.split(",")))]
            for row in of_run.to_dict("records"):
                key = tuple(row[name] for name in link)
                names = [f"{row[end]} {row[f'{end}_learner']}" for end in ("start", "end")]
                numbers = [row["distance"], row["relative"], row["cosine"]]
                numbers += [overlaps.loc[(*key, "column")], overlaps.loc[(*key, "row")], lowest.get(key)]
                numbers += [of_old.churn.get(key), of_old.kl.get(key)]
                rows.append([*names, *map(cell, numbers)])
            yield f"\n{strategy} / seed {seed}; overlap: mean cos² of the principal angles, mean over modules;"
            yield "CKA (lowest of the layers), churn and KL (nats/token): mean over the old tasks, test split"
            yield rows


def _fewest_examples() -> int:
    from mcanalysis.metrics.representation_similarity import SMALLEST_BATCH

    return SMALLEST_BATCH[True]


class _Minima:
    """The minima of a run, and where the results of comparing them lie: a file for the weights and one per task."""

    def __init__(self, run: Run, study: Similarity) -> None:
        from mcanalysis.studies.similarity_tables import Place

        self.run = run
        self.study = study
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

    def objective(self, number: int) -> Objective:
        """The test split of the run's task with this number, from 1."""
        return self.run.task_objective(self.run.task_names[number - 1], "test", self.study.num_examples)

    def weights_result(self) -> JsonResult:
        """Named, as all of them, by a hash of everything its contents depend on."""
        from mcanalysis.params.spaces import space_names
        from mcanalysis.params.subspace_overlap import TOLERANCE

        return self._result("weights", [_VERSION, TOLERANCE, space_names(), self.keys])

    def task_result(self, number: int) -> JsonResult:
        """The first `num_examples` are in the key by their content."""
        manifest, config = self.run.manifest, self.run.config
        base = [manifest["hashes"]["base"], config["dtype"], config.get("quantization")]
        parts = [_VERSION, self.keys, self.objective(number).settings_key, base, self.study.batch_size]
        return self._result(f"{number}-{self.run.task_names[number - 1]}", parts)

    def _result(self, name: str, parts: list[Any]) -> JsonResult:
        return JsonResult(self.run.directory / "similarity" / f"{name}-{hash_json(parts)[:12]}.json")

    def columns(self, link: Link) -> dict[str, Any]:
        """The columns that say what is compared."""
        return {
            "comparison": link.comparison,
            "start": self.labels.get(link.start, "0-base"),
            "start_learner": link.start.learner,
            "end": self.labels[link.end],
            "end_learner": link.end.learner,
        }

    def tables(self, weights: dict[str, Any], of_tasks: list[dict[str, Any]]) -> Tables:
        """The four tables, by name, from the results."""
        import pandas as pd

        from mcanalysis.studies.similarity_tables import cka_rows, prediction_row, task_links

        whose = {"strategy": self.run.strategy, "seed": self.run.seed}
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        for name, stored in weights.items():
            rows[name] = [whose | row for row in stored]
        names = self.run.task_names
        for link in task_links(self.places):
            now = link.end.number
            found = [of_task[f"{link.start.name} {link.end.name}"] for of_task in of_tasks[:now]]
            shown = {name: ("old", [values]) for name, values in zip(names[: now - 1], found, strict=False)}
            shown[names[now - 1]] = ("new", found[-1:])
            if now > 1:
                shown["mean_old"] = ("old", found[:-1])
            for task, (role, values) in shown.items():
                labels = whose | self.columns(link) | {"task": task, "role": role, "split": "test"}
                rows["cka"] += cka_rows(labels, values)
                rows["prediction_similarity"].append(prediction_row(labels, values))
        return {name: pd.DataFrame(rows[name]) for name in TABLES}


def _compare_weights(opening: Opening, study: Similarity, progress: Progress) -> dict[str, Any]:
    from mcanalysis.studies.similarity_tables import distance_rows, overlap_rows, weight_links

    minima = _Minima(opening.run, study)
    links = weight_links(minima.places)
    bar = progress(total=len(links), desc=f"weights {minima.run.strategy} (seed {minima.run.seed})")
    points = {place: minima.point(place) for place in minima.places}
    rows: dict[str, list[dict[str, Any]]] = {"weight_distance": [], "subspace_overlap": []}
    for link in links:
        pair = points[link.start], points[link.end]
        rows["weight_distance"] += [minima.columns(link) | row for row in distance_rows(*pair)]
        rows["subspace_overlap"] += [minima.columns(link) | row for row in overlap_rows(*pair)]
        bar.update(1)
    bar.close()
    return rows


def _compare_on_task(opening: Opening, study: Similarity, number: int, progress: Progress) -> dict[str, Any]:
    from mcanalysis.evaluation.representations import compare_points, num_parts
    from mcanalysis.metrics.prediction_similarity import answers_differ
    from mcanalysis.studies.similarity_tables import task_links

    minima = _Minima(opening.run, study)
    run, objective = minima.run, minima.objective(number)
    links = [link for link in task_links(minima.places) if link.end.number >= number]
    places = sorted({place for link in links for place in (link.start, link.end)})
    total = len(places) + num_parts(objective.encoded, study.batch_size)
    bar = progress(total=total, desc=f"similarity {run.strategy} {objective.name}")
    points = {place.name: minima.point(place) for place in places}
    answers = {}
    for name, point in points.items():
        answers[name] = run.engine.evaluate(point, [objective])[0].outputs
        bar.update(1)
    pairs = list(dict.fromkeys((link.start.name, link.end.name) for link in links))
    compared = compare_points(
        run.model, points, pairs, objective.encoded, batch_size=study.batch_size, on_batch=lambda: bar.update(1)
    )
    bar.close()
    return {
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
