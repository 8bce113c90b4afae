"""Pre-training a small base on a stream of packed documents with `transformers.Trainer`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from mcanalysis.errors import RunDirectoryError
from mcanalysis.models.encoding import IGNORED
from mcanalysis.pretraining.base_model import new_model, train_tokenizer
from mcanalysis.pretraining.config import PretrainingConfig
from mcanalysis.pretraining.corpus import Document, folder_documents, generated_documents
from mcanalysis.progress import Progress, silent
from mcanalysis.store.atomic import replace_directory_atomic
from mcanalysis.tasks.embedded import grammars


class PackedRows(IterableDataset):
    """Documents, each ended by the end token, cut into rows of equal length without padding."""

    def __init__(self, documents: Iterator[Document], tokenizer: Any, row_length: int) -> None:
        self.documents = documents
        self.tokenizer = tokenizer
        self.row_length = row_length

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        ids: list[int] = []
        labels: list[int] = []
        for document in self.documents:
            prompt = self.tokenizer(document.prompt)["input_ids"] if document.prompt else []
            text = [*self.tokenizer(document.text)["input_ids"], self.tokenizer.eos_token_id]
            ids += [*prompt, *text]
            labels += [*(prompt if document.predict_prompt else [IGNORED] * len(prompt)), *text]
            while len(ids) >= self.row_length:
                yield {
                    "input_ids": torch.tensor(ids[: self.row_length]),
                    "labels": torch.tensor(labels[: self.row_length]),
                }
                del ids[: self.row_length], labels[: self.row_length]


class _Watch(TrainerCallback):
    def __init__(self, on_step: Any) -> None:
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step()


def _endless(documents: list[Document], seed: int) -> Iterator[Document]:
    rng = Random(f"order/{seed}")
    while True:
        yield from rng.sample(documents, len(documents))


def pretrain(config: PretrainingConfig, output_dir: str | Path, progress: Progress = silent) -> dict[str, Any]:
    """Train tokenizer and model and write them to a folder that `--model` takes; returns a summary.

    The folder appears complete or not at all. Raises `RunDirectoryError` where it is there already, `DataError` for a
    text folder without text.
    """
    output = Path(output_dir)
    if output.exists() and any(output.iterdir()):
        raise RunDirectoryError(
            f"Expected a new folder for the base, got '{output}', which is not empty; name another folder."
        )
    if config.text_dir is None:
        documents = generated_documents(config.seed)
        sample = list(islice(generated_documents(config.seed), 30_000))
        # The tasks' instructions are shown to the tokenizer, never to the model: their prompts stay short.
        rng = Random(f"tokenizer/{config.seed}")
        texts = [f"{d.prompt}\n{d.text}" for d in sample]
        texts += [g.generate(rng, i)[0] for _, g in sorted(grammars().items()) for i in range(300)]
    else:
        folder = folder_documents(config.text_dir)
        documents = _endless(folder, config.seed)
        texts = [f"{d.prompt}\n{d.text}" for d in folder]
    tokenizer = train_tokenizer(texts, config.vocab_size)
    torch.manual_seed(config.seed)
    model = new_model(tokenizer, config.hidden_size, config.num_layers, config.num_heads, config.intermediate_size)
    bar = progress(total=config.num_steps, desc="pre-train")
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=config.num_steps,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(200, config.num_steps // 10),
            weight_decay=0.1,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            seed=config.seed,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_nan_inf_filter=False,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=PackedRows(documents, tokenizer, config.row_length),
            callbacks=[_Watch(bar.update)],
        )
        trainer.remove_callback(PrinterCallback)
        result = trainer.train()
    bar.close()
    summary = {
        "config": asdict(config),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "mean_training_loss": result.training_loss,
    }
    with replace_directory_atomic(output) as folder_to_fill:
        model.cpu().save_pretrained(folder_to_fill)
        tokenizer.save_pretrained(folder_to_fill)
        # No time in it: the same base made twice is one base, also to the hash of its files.
        (folder_to_fill / "pretraining.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary | {"seconds": round(result.metrics["train_runtime"], 1)}
