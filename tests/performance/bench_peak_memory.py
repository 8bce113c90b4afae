"""Peak memory of a training step with I-LoRA against one with replay, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from timing import take_turns
from workload import Aim, Options, Section, Table

TITLE = "Peak memory: I-LoRA against replay"
STRATEGIES = ("sequential", "er", "ilora")
_MB = 1e6


def measure(options: Options) -> Section:
    strategies = STRATEGIES[1:] if options.quick else STRATEGIES
    found = take_turns({s: (lambda s=s: _in_own_process(s, options.quick)) for s in strategies}, options.repetitions)
    above = {s: [r["peak"] - r["baseline"] for r in found[s]] for s in strategies}
    slow = found["ilora"][0]["adapter"]
    er, ilora = (float(np.median(above[s])) for s in ("er", "ilora"))
    aim = Aim(
        "(peak of ilora − slow adapter) / peak of er, both above what was loaded",
        1.15,
        (ilora - slow) / er,
        detail=f"({ilora / _MB:.1f} − {slow / _MB:.2f} MB against {er / _MB:.1f} MB)",
    )
    rows = [["strategy", "loaded, MB", "peak, MB", "peak above loaded, MB", "range over processes, MB"]]
    for s in strategies:
        loaded, peak = (np.median([r[key] for r in found[s]]) / _MB for key in ("baseline", "peak"))
        low, high = min(above[s]) / _MB, max(above[s]) / _MB
        rows.append([s, f"{loaded:.0f}", f"{peak:.0f}", f"{np.median(above[s]) / _MB:.1f}", f"{low:.1f} to {high:.1f}"])
    return Section(
        [aim],
        [Table("Resident memory of the whole process, medians.", rows)],
        [
            f"{options.repetitions} processes per strategy, in turn; {found['er'][0]['num_steps']} steps of 16 current "
            "and (er, ilora) 16 replayed examples of the embedded tasks (replay memory full), the same for all.",
            "Peak: `VmHWM` of the process, reset after the base, the libraries (two sequential steps) and the examples "
            "were loaded; loaded: its `VmRSS` then.",
            "glibc is told to give freed blocks of 128 KiB and more back at once (`MALLOC_MMAP_THRESHOLD_`), so that "
            "the peak is what is held, not what was held once.",
            "There is one base model in each process; the slow adapter is a set of tensors, put in place for one call.",
        ],
    )


def _in_own_process(strategy: str, quick: bool) -> dict[str, Any]:
    """What `_measure_here` finds in a fresh process."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, strategy, "quick" if quick else "full"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{strategy} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure_here(strategy: str, quick: bool) -> dict[str, Any]:
    import torch
    from setups import MEMORY, embedded_examples, embedded_model, in_mid_sequence
    from timing import train_steps

    from mcanalysis.training.config import TrainingConfig
    from mcanalysis.training.peak_memory import peak_memory_bytes, reset_peak_memory

    torch.set_num_threads(1)
    model = embedded_model()
    *earlier, examples = embedded_examples(model.tokenizer, 40 if quick else 200).values()
    memory = [e for task in earlier for e in task][-MEMORY:]
    train_steps(model, in_mid_sequence("sequential", model, [], examples[:4]), examples[:4], TrainingConfig(2, 2))
    num_steps = 2 if quick else 12
    adapter = sum(p.numel() * p.element_size() for p in model.parameters.values())
    reset_peak_memory()
    baseline = _resident_bytes()
    train_steps(model, in_mid_sequence(strategy, model, memory, examples), examples, TrainingConfig(num_steps))
    return {"baseline": baseline, "peak": peak_memory_bytes(), "adapter": adapter, "num_steps": num_steps}


def _resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure_here(sys.argv[1], sys.argv[2] == "quick")) + "\n")
