"""The card: on one page, what lies between two adapters, to be pasted into a model card.

It is the study of paths (`studies.connectivity`) on the straight paths between the two, in words. Of every data file
one half chooses t*, the other one is what everything is measured on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcanalysis.errors import UserError
from mcanalysis.models.base_source import model_source
from mcanalysis.numbers_as_text import fixed
from mcanalysis.params.lora import module_names, ranks
from mcanalysis.params.point import Point, content_hash
from mcanalysis.params.spaces import get_space
from mcanalysis.params.weight_distance import weight_distance
from mcanalysis.paths import Linear
from mcanalysis.progress import Progress, silent
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.manifest import manifest_in
from mcanalysis.studies.adapters import AdapterPair, AdaptersOpening, connect_adapters
from mcanalysis.studies.card_page import CardCurve, Heading, Part, as_html, as_markdown
from mcanalysis.studies.card_settings import SPACES, CardPaths
from mcanalysis.studies.minima import short_names
from mcanalysis.studies.study import Tables

if TYPE_CHECKING:
    import pandas as pd

    from mcanalysis.studies.engine import Workers


@dataclass(frozen=True)
class Card:
    """What lies between two adapters, in words.

    `verdict`: its sentences. `t_star`: of the path straight in the weights, chosen on one half of the data; NaN where
    there is none. `tables`: those of the study, `profiles` and `barriers`. `base_name`: the base's name, as a model
    card names it. Shows itself in a notebook.
    """

    title: str
    verdict: tuple[str, ...]
    t_star: float
    base_name: str
    parts: Sequence[Part] = field(repr=False)
    tables: Tables = field(repr=False)
    ends: tuple[Point, Point] = field(repr=False)

    @property
    def markdown(self) -> str:
        """The page in Markdown."""
        return as_markdown(self.parts)

    @property
    def html(self) -> str:
        """The page in HTML, on its own and without scripts."""
        return as_html(self.parts, self.title)

    def _repr_html_(self) -> str:
        return self.html

    def point(self, t: float) -> Point:
        """The point (1−t)·ΔW of the first adapter + t·ΔW of the second."""
        return Linear(*self.ends, space="delta")(t)

    def of_point(self, t: float) -> str:
        """The page in Markdown with a line on top that says which point of the path the adapter beside it is."""
        which = f"This adapter is the point t = {t:g} between the two below, merged in the weights"
        if not np.isclose(t, self.t_star):
            which += (
                f"; the verdict speaks of t* = {self.t_star:g}" if np.isfinite(self.t_star) else "; t* is not known"
            )
        return f"{which}.\n\n{self.markdown}"

    def save(self, directory: str | Path) -> list[Path]:
        """Write `card.md` and `card.html`; returns the two files."""
        files = {Path(directory) / "card.md": self.markdown, Path(directory) / "card.html": self.html}
        for file, text in files.items():
            write_text_atomic(file, text)
        return list(files)


def card(
    first: str | Path,
    second: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    model: str | None = None,
    score: str | None = None,
    output_dir: str | Path | None = None,
    study: CardPaths | None = None,
    workers: Workers | None = None,
    progress: Progress = silent,
    **opening: Any,
) -> Card:
    """Measure the straight paths between two adapters and return the page about them; what is kept is not computed.

    Args:
        first, second: folders of two PEFT LoRA adapters of one base.
        data: a file of prompts and answers, or two: old task, new task. Every second example chooses t*; all else is
            measured on the others.
        model: the base, a folder, `embedded` or a hub id; None: the one that the adapters name.
        score: how answers are scored; None: exact match, or the task's own for a file named after one.
        output_dir: where measurements and tables are kept, by default `runs/card-<first>-<second>`.
        study: `CardPaths` with other numbers.
        workers: who computes, by default this process.
        progress: a bar.
        opening: further fields of `AdaptersOpening`, such as `device`, `dtype`, `max_new_tokens`, `max_length`.

    Raises:
        UserError: for what is not there, does not fit, or cannot be measured, with nothing written.
    """
    study = study or CardPaths()
    files = tuple(map(str, [data] if isinstance(data, (str, Path)) else data))
    adapters = (str(first), str(second))
    opened = AdaptersOpening(
        adapters, model or base_of(adapters), files, Path(output_dir or default_folder(adapters)),
        score=score, halves=True, **opening,
    )  # fmt: skip
    study, refused = _joined(study, adapters)
    outcome = connect_adapters(opened, study, workers, progress=progress)
    (pair,) = outcome.runs
    return _made(pair, study, outcome.tables, refused)  # type: ignore[arg-type]


def base_of(adapters: Sequence[str]) -> str:
    """The base that adapters name; raises `UserError` where none of them names one."""
    from mcanalysis.models.adapter_files import load_adapter

    names = [name for folder in adapters if (name := load_adapter(folder).base_name)]
    if not names:
        raise UserError("Expected adapters that name their base, got none; name it with --model.")
    return names[0]


def hub_name(base: str) -> str:
    """A base as a card names it: an id as it is, of a folder the last part alone, which says nothing of a machine.

    >>> hub_name("Qwen/Qwen2.5-0.5B"), hub_name("embedded"), hub_name("/home/me/models/mine/")
    ('Qwen/Qwen2.5-0.5B', 'embedded', 'mine')
    """
    if Path(base).resolve() == Path(model_source("embedded")).resolve():
        return "embedded"
    return Path(base).name if Path(base).is_absolute() or Path(base).exists() else base


def default_folder(adapters: Sequence[str]) -> str:
    """Where a card is kept.

    >>> default_folder(["run/minima/1-A/fast", "run/minima/2-B/fast"])
    'runs/card-1-A-2-B'
    """
    return f"runs/card-{'-'.join(short_names(adapters))}"


def _joined(study: CardPaths, adapters: Sequence[str]) -> tuple[CardPaths, dict[str, str]]:
    """The study of the spaces that can join the two, and why others cannot."""
    from mcanalysis.models.adapter_files import read_point

    points = [read_point(folder) for folder in adapters]
    if content_hash(points[0]) == content_hash(points[1]):
        raise UserError(
            f"Expected two adapters, got the same one as '{adapters[0]}' and '{adapters[1]}'; name another."
        )
    if not any(kind.rpartition("-")[2] == "delta" for kind in study.paths):
        raise UserError(
            f"Expected a path in the space delta for a card, got {', '.join(study.paths)}; add linear-delta."
        )
    refused = {}
    for kind in study.paths:
        space = kind.rpartition("-")[2]
        try:
            get_space(space).embed(points)
        except UserError as error:
            if space == "delta":
                raise
            refused[space] = str(error)
    return replace(study, paths=tuple(k for k in study.paths if k.rpartition("-")[2] not in refused)), refused


def _made(pair: AdapterPair, study: CardPaths, tables: Tables, refused: Mapping[str, str]) -> Card:
    names = short_names(pair.opening.adapters)
    barriers, profiles = tables["barriers"], tables["profiles"]
    profiles = profiles[profiles["split"] == "test"]
    tasks = [data.task.name for data in pair.tasks]
    measured = {kind.rpartition("-")[2] for kind in study.paths}
    losses = {space: _losses(barriers, space, tasks) for space in SPACES if space in measured}
    gains = {space: _gain(barriers, space) for space in losses}
    verdict = (*_on_barriers(losses, study.noticeable), _on_gain(gains["delta"], len(tasks)))
    few = bool(barriers.few_events.any())
    title = f"Between {names[0]} and {names[1]}"
    base = hub_name(next(iter(pair.base_names), pair.opening.model_name))
    parts: list[Part] = [Heading(title, 1), *verdict, Heading("Barriers and gain"), _table(losses, gains)]
    parts.append(f"Spaces: {'; '.join(f'{space}, {SPACES[space]}' for space in losses)}.")
    parts += [f"Not measured in {space} space: {reason}" for space, reason in refused.items()]
    known = "enclosed by a search" if study.tolerance is not None else "with 95 % intervals"
    parts.append(
        f"Barrier: how far the loss rises above the straight line between its ends, nats per target token, {known}. "
        "Gain: score at t* less that of the better end; t* was chosen on other examples than all this was measured on."
        + (" * under 50 examples, or under five of them make most of the variance: no 95 % is promised." if few else "")
    )
    parts += [Heading("Along the straight path of the weights"), _along(profiles, tasks, gains["delta"]["t_star"])]
    for space in losses:
        for task in tasks:
            rows = profiles[(profiles.space == space) & (profiles.task == task)]
            parts.append(CardCurve(f"{task}, {space}: loss, nats per target token", list(rows.t), list(rows.loss)))
    parts += [Heading("The two"), _facts(pair, names, base), Heading("Data"), *_data(pair, study)]
    versions = (manifest_in(pair.directory) or {})["versions"]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    first, second = pair.points
    parts += [Heading("Made with"), f"mcanalysis, analyses/card.py; {shown}; dtype {pair.opening.dtype}."]
    return Card(title, verdict, float(gains["delta"]["t_star"]), base, parts, tables, (first, second))


def _losses(barriers: pd.DataFrame, space: str, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By task: barrier of the loss and what bounds it, enclosed where a search was made, else 95 %."""
    rows = barriers[(barriers.space == space) & (barriers.quantity == "loss")].set_index("task")
    found = {}
    for task in tasks:
        of_two = len(tasks) == 2 and task == tasks[0] and "mean_old" in rows.index
        row: Any = rows.loc["mean_old" if of_two else task].to_dict()  # a search encloses the mean over one old task
        is_enclosed = isinstance(row.get("certificate"), str)
        low, high = (
            row[f"chord_barrier{end}"] for end in (("_at_least", "_at_most") if is_enclosed else ("_low", "_high"))
        )
        few = bool(row["few_events"]) and not is_enclosed
        found[task] = {"barrier": row["chord_barrier"], "low": low, "high": high, "few": few}
        found[task] |= {"certificate": row["certificate"]} if is_enclosed else {}
    return found


def _gain(barriers: pd.DataFrame, space: str) -> dict[str, Any]:
    """The gain of the score with its interval, and t*; of the mean over two tasks, or of the only one."""
    rows = barriers[(barriers.space == space) & (barriers.quantity == "score")]
    row = rows[rows.task == ("mean" if "mean" in set(rows.task) else rows.task.iloc[0])].iloc[0]
    names = ("interpolation_gain", "interpolation_gain_low", "interpolation_gain_high", "t_star", "few_events")
    return {name: row[name] for name in names}


def _bounds(low: float, high: float, digits: int = 3, signed: bool = False) -> str:
    return f"{fixed(low, digits, signed)} to {fixed(high, digits, signed)}"


def _on_barriers(losses: Mapping[str, Mapping[str, Mapping[str, Any]]], noticeable: float) -> Iterator[str]:
    """A sentence for each space: on a task that has a barrier, or else on the one that may have the highest."""
    said = {}
    for space, of_tasks in losses.items():
        unknown = [task for task, row in of_tasks.items() if not np.isfinite(row["barrier"])]
        high = [task for task, row in of_tasks.items() if row["low"] > noticeable and not row["few"]]
        low = [task for task, row in of_tasks.items() if row["high"] <= noticeable and not row["few"]]
        open_ = [task for task in of_tasks if task not in low]
        task = max(unknown or high or open_ or of_tasks, key=lambda name: np.nan_to_num(of_tasks[name]["high"]))
        row = of_tasks[task]
        where = SPACES[space][0].upper() + SPACES[space][1:] + (", on these examples" if "certificate" in row else "")
        between = f"{fixed(row['barrier'], 3)} ({_bounds(row['low'], row['high'])}, {task})"
        if unknown:
            said[space] = "unknown"
            yield f"{where}: a loss on the path is not a finite number ({task}), so nothing is said of a barrier."
        elif high:
            said[space] = "barrier"
            yield f"{where}: a barrier of {between} nats per token."
        elif len(low) == len(of_tasks):
            said[space] = "none"
            yield f"{where}: no barrier of {noticeable:g} nats per token or more; the highest is {between}."
        else:
            said[space] = "undecided"
            more = "a smaller --tolerance" if "certificate" in row else "more examples"
            few = ", which a few examples make" if row["few"] else ""
            level = f"{noticeable:g} nats per token"
            yield f"{where}: {more} must tell whether there is a barrier of {level}; {between}{few}."
    if {said.get("factor"), said["delta"]} == {"none", "barrier"}:
        yield "Which one has a barrier is a matter of the parametrisation: both paths join the same two models."


def _on_gain(gain: Mapping[str, Any], num_tasks: int = 1) -> str:
    value, low, high = (gain[f"interpolation_gain{end}"] for end in ("", "_low", "_high"))
    t = f"{gain['t_star']:.2f}"
    words = f"{fixed(value, 3, True)} ({_bounds(low, high, signed=True)})"
    if np.isnan(value):
        return "Merged in the weights: a score on the path is not a number, so no gain is known."
    end = "the better end" if num_tasks == 1 else "the better end, in the mean of both tasks"
    if gain["few_events"] or low <= 0 <= high:
        return f"Merged in the weights at t* = {t}: not shown to score better or worse than {end}, {words}."
    better = "better" if low > 0 else "worse"
    return f"Merged in the weights at t* = {t}: scores {better} than {end}, by {words}."


def _table(losses: Mapping[str, Mapping[str, Mapping[str, Any]]], gains: Mapping[str, Mapping[str, Any]]) -> Part:
    rows = [["space", "task", "barrier of the loss", "from – to", "known by", "gain in score", "95 %", "t*"]]
    for space, of_tasks in losses.items():
        gain = gains[space]
        stars = "*" if gain["few_events"] else ""
        ends = (gain["interpolation_gain_low"], gain["interpolation_gain_high"])
        gained = [fixed(gain["interpolation_gain"], 3, True), _bounds(*ends, signed=True) + stars]
        gained.append(fixed(gain["t_star"], 2))
        for task, row in of_tasks.items():
            star = "*" if row["few"] else ""
            line = [space, task, fixed(row["barrier"], 3), _bounds(row["low"], row["high"]) + star]
            line.append(row.get("certificate", "95 % interval"))
            rows.append([*line, *(gained if len(of_tasks) == 1 else [""] * len(gained))])
        if len(of_tasks) > 1:
            rows.append([space, "mean of both", *[""] * (len(rows[0]) - 2 - len(gained)), *gained])
    return rows


def _along(profiles: pd.DataFrame, tasks: Sequence[str], t_star: float) -> Part:
    """Loss and score at the ends, in the middle and at t*, as far as these were measured."""
    of_delta = profiles[profiles.space == "delta"]
    ts = sorted({t for t in of_delta.t if t in (0.0, 0.5, 1.0, t_star)})
    rows = [["t", *(f"{task}, {what}" for task in tasks for what in ("loss", "score"))]]
    for t in ts:
        line = [f"{t:g}" + (" (t*)" if t == t_star else "")]
        for task in tasks:
            row = of_delta[(of_delta.t == t) & (of_delta.task == task)].iloc[0]
            line += [fixed(row.loss, 3), fixed(row.score, 3)]
        rows.append(line)
    return rows


def _facts(pair: AdapterPair, names: Sequence[str], base: str) -> Part:
    first, second = pair.points
    apart = weight_distance(first, second)
    rows = [["", *names], ["base", base, base]]
    rows.append(["rank", *(_ranks(point) for point in pair.points)])
    rows.append(["adapted modules", *(str(len(module_names(point))) for point in pair.points)])
    rows.append(["size of ΔW (Frobenius norm)", fixed(apart.norm_a, 3), fixed(apart.norm_b, 3)])
    rows.append(["distance in ΔW", fixed(apart.distance, 3), f"{fixed(apart.relative, 3)} of the first's size"])
    rows.append(["cosine of the two ΔW", fixed(apart.cosine, 3), ""])
    return rows


def _ranks(point: Point) -> str:
    found = sorted(set(ranks(point).values()))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _data(pair: AdapterPair, study: CardPaths) -> Iterator[Part]:
    """What was measured, and what of it was cut or cannot be scored, whatever the model."""
    from mcanalysis.evaluation.reach import reach

    rows = [["task", "examples", "of them choose t*", "score", "new tokens", "prompts cut", "answers out of reach"]]
    for data in pair.tasks:
        name = data.task.name
        halves = [pair.task_objective(name, split, study.num_examples) for split in pair.splits]
        sizes = [len(half.examples) for half in halves]
        lost = sum(reach(o.task, o.examples, o.encoded, pair.tokenizer).unreachable for o in halves)
        cut = sum(half.num_cut for half in halves)
        rows.append(
            [name, str(sum(sizes)), str(sizes[0]), data.task.score, str(data.task.max_new_tokens), str(cut), str(lost)]
        )
    yield rows
    yield (
        f"Prompts longer than {pair.opening.max_length} tokens with their answers lose their middle. An answer is out "
        "of reach where its tokens, read back, do not score as it does: empty, too long, or changed by the tokenizer."
    )
    template = next((o.template for o in pair.objectives(study.num_examples) if o.template), "")
    if template:
        yield f"Prompts were put into the chat template {template}."
