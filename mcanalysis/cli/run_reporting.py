"""How runs are told: what one would need, and what it came to; the same unrounded for `--json`."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from mcanalysis.cli.console import answer, duration, next_step, say, table, warn
from mcanalysis.numbers_as_text import cell
from mcanalysis.runs.run import Run
from mcanalysis.strategies import get_strategy
from mcanalysis.studies.strategy_tables import METRICS
from mcanalysis.training.dry_run import DryRun

if TYPE_CHECKING:
    from mcanalysis.studies.connectivity.forecast import Forecast


def dry_run(plan: DryRun) -> None:
    """What a run would do and need."""
    stages = plan.stages
    if len(stages):
        rows = [
            ["task", "train", "cut", "answer tokens", "longest", "steps", "epochs", "tokens", "per step", "padding"]
        ]
        rows[0] += ["ungrouped", "to max length"]
        for _, s in stages.iterrows():
            padding = (f"{1 - s.tokens / size:.0%}" for size in (s.padded, s.padded_ungrouped, s.padded_to_max))
            rows.append(
                [
                    str(s.task), str(s.examples), str(s.cut), f"{s.answer_tokens:.1f}", str(s.longest_answer),
                    str(s.steps), f"{s.epochs:.1f}", f"{s.tokens:,}", f"{s.tokens / s.steps:,.0f}", *padding,
                ]
            )  # fmt: skip
        say(f"\n{plan.strategy} on {plan.model}; nothing is written, no weights are read")
        table(rows)
        tokens, padded, to_max = (int(stages[name].sum()) for name in ("tokens", "padded", "padded_to_max"))
        say(
            f"tokens: {tokens:,}, with padding {padded:,}, if every row were padded to the maximum {to_max:,} "
            f"({to_max / padded:.1f} × as many)"
        )
        if stages.replayed.any():
            say(f"of all examples {int(stages.replayed.sum()):,} are replayed ones, whose lengths are an estimate")
        say(
            f"learning rate: {plan.peak_rate:g} at its peak, schedule {plan.training.schedule}, warm-up over "
            f"{plan.training.warmup_ratio:.0%} of a task's steps"
        )
    say(_prompts(plan.template))
    cut = f", {plan.cut_tests} of them to cut prompts" if plan.cut_tests else ""
    say(f"generations: {plan.generations:,} answers to score{cut}")
    say(f"parameters: {plan.num_parameters:,} in the base, {plan.num_trained:,} trained")
    if plan.num_trained:
        parts = {f.name: getattr(plan.memory, f.name) for f in fields(plan.memory)}
        shown = ", ".join(f"{name} {size(value)}" for name, value in parts.items() if value)
        say(f"memory of a training step, an estimate: {size(plan.memory.total)} ({shown}) and the libraries' own")
    counts = {name: getattr(plan, name) for name in ("num_parameters", "num_trained", "generations", "cut_tests")}
    memory = {"total": plan.memory.total, **asdict(plan.memory)}
    rate = {"learning_rate": plan.peak_rate, "schedule": plan.training.schedule}
    names = {"model": plan.model, "strategy": plan.strategy, "chat_template": plan.template or None}
    answer({"stages": stages}, **names, **rate, **counts, memory_bytes=memory)
    next_step("the same command without --dry-run")


def forecast(plan: Forecast) -> None:
    """What a study of paths would take."""
    rows = [["run", "work", "to do", "stored", "answers", "time of one worker"]]
    for _, row in plan.rows.iterrows():
        counts = (f"{row[name]:,}" for name in ("to_do", "stored", "examples"))
        rows.append([str(row.run), str(row.work), *counts, duration(row.seconds)])
    say("\nWhat would be computed; nothing is written")
    table(rows)
    workers = "one worker" if plan.num_workers == 1 else f"{plan.num_workers} workers"
    say(f"about {duration(plan.seconds)} on {workers}, from a few batches and steps timed here; starting, tables and")
    say("figures come on top. Not told: what runs under way have measured, and what a strategy computes between tasks;")
    say("answers of models that are still to be trained are taken to be as long as the references")
    if plan.memory is not None:
        needed = plan.memory * plan.num_workers
        of_each = f" ({plan.num_workers} × {size(plan.memory)})" if plan.num_workers > 1 else ""
        free = "" if plan.free is None else f", {size(plan.free)} are free"
        say(f"memory at its peak: about {size(needed)}{of_each}{free}")
        if plan.free is not None and needed > plan.free:
            fewer = "fewer --workers, " if plan.num_workers > 1 else ""
            warn(f"that is more than is free: {fewer}a lower --token-budget or --batch-size, or --dtype bfloat16 help")
    answer(
        {"work": plan.rows}, seconds=plan.seconds, workers=plan.num_workers,
        memory_bytes=plan.memory, free_bytes=plan.free,
    )  # fmt: skip


def pieces(plan: Forecast) -> None:
    """What any other study would take."""
    rows = [["run", "work", "to do", "time of one worker"]]
    for row in plan.rows.to_dict("records"):
        rows.append([row["run"], row["work"], f"{row['to_do']:,}", duration(row["seconds"])])
    say("\nWhat would be computed; nothing is written")
    table(rows)
    workers = "one worker" if plan.num_workers == 1 else f"{plan.num_workers} workers"
    say(f"about {duration(plan.seconds)} on {workers}, from a few pieces timed here; starting, tables and figures come")
    say("on top, and what follows from these pieces, as points do from a curve's fit")
    answer({"work": plan.rows}, seconds=plan.seconds, workers=plan.num_workers)


def _prompts(template: str) -> str:
    """How prompts are read."""
    return f"prompts: in chat template {template}" if template else "prompts: as they are, in no chat template"


def starting_anew(directory: str) -> None:
    """Say on stderr that --resume found nothing: a folder that was misspelt would start a run from nothing."""
    warn(f"--resume: no run at {directory}, starting anew")


def size(number: float) -> str:
    """Bytes for people."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def run(finished: Run) -> None:
    """The accuracy matrix and the metrics of one run."""
    matrix = finished.accuracy_matrix
    rows = [["after", *matrix.columns[1:]]]
    names = ["base", *(f"{k} {name}" for k, name in enumerate(finished.task_names, start=1))]
    if get_strategy(finished.strategy).schedule == "joint":  # nothing between the base and the end
        names[-1] = "all tasks"
    rows += [[names[int(values[0])], *map(cell, values[1:])] for values in matrix.to_numpy()]
    say(f"\n{finished.strategy} / {finished.answering_learner}: score per task (columns) after each task (rows)")
    table(rows)
    for learner, metrics in finished.metrics["learners"].items():
        shown = ", ".join(f"{m.replace('_', ' ')} {cell(metrics[m])}" for m in METRICS)
        say(f"{learner}: {shown}")
    if finished.chat_template:
        say(_prompts(finished.chat_template))
    say(f"run directory: {finished.directory}")
    answer(
        {"accuracy_matrix": matrix}, runs=[str(finished.directory)], tasks=finished.task_names,
        learners=finished.metrics["learners"], chat_template=finished.chat_template or None,
        cut_prompts=finished.manifest.get("evaluation", {}).get("cut_prompts", {}),
    )  # fmt: skip
    next_step("connectivity", "--run", finished.directory)
