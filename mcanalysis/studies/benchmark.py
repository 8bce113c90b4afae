"""What a benchmark asks of a model: label shares, simple baselines, and what one fresh adapter learns of each task."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mcanalysis.errors import MissingPackageError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import encode_split, make_objective
from mcanalysis.metrics.scores import get_score
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.chat_template import AUTO, choose_template, use_template
from mcanalysis.models.end_tokens import reference
from mcanalysis.models.loading import default_device, load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.progress import Progress, silent
from mcanalysis.strategies import make_strategy
from mcanalysis.tasks.task import Task, TaskData
from mcanalysis.training.config import TrainingConfig
from mcanalysis.training.task_trainer import TaskTrainer


def describe_benchmark(
    tasks: Sequence[TaskData],
    model_name: str = "embedded",
    training: TrainingConfig | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = silent,
    revision: str | None = None,
    chat_template: str = AUTO,
) -> pd.DataFrame:
    """One row per task; scores are on the test split, in [0, 1].

    `tokens`: mean length of an example. `distinct`: share of distinct prompts over all splits. `leaked`: test prompts
    that are in train. `most_common`: share of the most common answer in test, which is the score of always giving it
    for accuracy tasks. `bag_of_words`: logistic regression on token counts where answers are labels or numbers, else
    the answer of the nearest train prompt. `base`: the model as it is. `adapter`: after one fresh adapter on this task
    alone.
    """
    training = training or TrainingConfig()
    rows = []
    training.check_tasks([data.task.name for data in tasks])
    steps = [training.steps_of(data.task.name, len(data.splits["train"])) for data in tasks]
    bar = progress(total=sum(steps), desc="one adapter per task")
    base, tokenizer = load_base(model_name, device=device or default_device(), revision=revision)
    use_template(tokenizer, choose_template(chat_template, tokenizer, tasks))
    model = LoraModel.attach(base, tokenizer, LoraSettings(), seed, model_name)
    start = model.point()
    engine = Engine(model)
    for data in tasks:
        encoded, _ = encode_split(data, "train", tokenizer, training.max_length)
        objective = make_objective(data, "test", tokenizer, training.max_length)
        before = engine.measure(model.base_point(), [objective])[0].score
        model.load_point(start)
        strategy = make_strategy("sequential", seed)
        strategy.begin_task(model, 0, encoded)
        with tempfile.TemporaryDirectory() as scratch:
            order = f"{seed}/{data.task.name}"
            TaskTrainer(model, strategy, encoded, data.task.name, training, order, scratch, on_step=bar.update).train()
        after = engine.measure(model.point(), [objective])[0].score
        prompts = [e.prompt for split in data.splits.values() for e in split]
        trained = {e.prompt for e in data.splits["train"]}
        answers = Counter(_label(data.task, e.answer) for e in objective.examples)
        rows.append(
            {
                "task": data.task.name,
                "score_name": data.task.score,
                "tokens": float(np.mean([len(e) for e in encoded])),
                "distinct": len(set(prompts)) / len(prompts),
                "leaked": sum(e.prompt in trained for e in data.splits["test"]),
                "labels": len(answers),
                "most_common": max(answers.values()) / len(data.splits["test"]),
                "bag_of_words": bag_of_words_score(data, tokenizer),
                "base": before,
                "adapter": after,
            }
        )
    bar.close()
    return pd.DataFrame(rows)


def bag_of_words_score(data: TaskData, tokenizer: Any) -> float:
    """Test score of a model that sees only which tokens a prompt holds."""
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        raise MissingPackageError("scikit-learn", "for the bag-of-words baseline", "classics") from None
    train, test = (
        [replace(e, answer=reference(e.answer, tokenizer)) for e in data.splits[split]] for split in ("train", "test")
    )
    counter = CountVectorizer(tokenizer=tokenizer.tokenize, token_pattern=None, lowercase=False)  # type: ignore[arg-type]
    train_counts = counter.fit_transform([e.prompt for e in train])
    test_counts = counter.transform([e.prompt for e in test])
    if data.task.score in ("accuracy", "number_accuracy"):
        labels = [_label(data.task, e.answer) for e in train]
        outputs = LogisticRegression(max_iter=1000).fit(train_counts, labels).predict(test_counts)
    else:
        nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(train_counts)
        outputs = [train[i].answer for i in nearest.kneighbors(test_counts, return_distance=False)[:, 0]]
    score = get_score(data.task.score).per_example
    return float(np.mean([score(o, e.answer, data.task.source(e.prompt)) for o, e in zip(outputs, test, strict=True)]))


def _label(task: Task, answer: str) -> str:
    return answer.strip()[:1] if task.score == "accuracy" else answer.strip()
