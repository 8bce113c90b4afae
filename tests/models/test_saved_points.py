"""A point on a path of a run, saved as an adapter: PEFT on the base gives what the run measures there."""

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.models.encoding import collate
from mcanalysis.models.forward import forward
from mcanalysis.runs.run import load_run
from mcanalysis.training.continual_trainer import train


def test_the_middle_of_a_runs_delta_path_is_loaded_by_peft(run_config, base_folder, tmp_path):
    sizes = {"train": 8, "eval": 2, "test": 3}
    config = run_config("sequential", num_steps=2, tasks=("FOMC", "MedMCQA"), sizes=sizes)
    train(config, tmp_path / "run", device="cpu")
    run = load_run(tmp_path / "run", "cpu")
    middle = run.path(1, 2, space="delta")(0.5)
    assert run.save_point(middle, tmp_path / "middle") == 0.0
    read = load_adapter(tmp_path / "middle")
    assert read.base_name == str(base_folder) and read.settings.rank == 8
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(read.base_name), tmp_path / "middle").eval()
    objective = run.task_objective("FOMC", "test")
    with torch.no_grad():
        nll = forward(loaded, collate(list(objective.encoded), run.tokenizer.pad_token_id)).nll
    measured = run.objective("FOMC", "test")(middle)
    torch.testing.assert_close(nll.double(), torch.tensor(measured.nll), rtol=1e-5, atol=1e-5)
    assert 0 < run.save_point(middle, tmp_path / "small", rank=2) < 1
    assert load_adapter(tmp_path / "small").settings.rank == 2
