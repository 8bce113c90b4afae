"""TRL's SFTTrainer takes the callbacks as transformers' Trainer does; its own averages stay what they are."""

import json

import pytest
import torch

import mcanalysis as mc
from mcanalysis.integrations import ConsistencyMixin, ForgettingCallback, IloraCallback

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'mcanalysis[trl]'")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def test_two_tasks_with_replay(tmp_path, data, base_folder, tokenizer, tracker):
    """Scores at saves, minima and the slow adapter; entropy and accuracy of TRL are as without the callback."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    class IloraSFT(ConsistencyMixin, trl.SFTTrainer):
        pass

    ends = {}
    for watched in (True, False):
        model, ilora, replay = AutoModelForCausalLM.from_pretrained(base_folder), IloraCallback(), None
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        for task in ("zeta", "alpha"):
            rows = json.loads((data / task / "train.json").read_text())
            rows = Dataset.from_list([{"prompt": r["prompt"], "completion": r["answer"]} for r in rows])
            args = trl.SFTConfig(
                str(tmp_path / f"{watched}-{task}"), max_steps=4, per_device_train_batch_size=4, save_steps=3,
                learning_rate=1e-2, logging_steps=2, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
            )  # fmt: skip
            told = tracker()
            more = {"processing_class": tokenizer, "peft_config": lora, "callbacks": [told]}
            trainer = IloraSFT(model, args, train_dataset=rows, ilora=ilora, replay_dataset=replay, **more)
            if watched:
                ForgettingCallback(
                    tmp_path / "run", task, data, ilora=ilora, num_points=3, max_new_tokens=4, num_test=2
                ).attach(trainer)
            else:
                trainer.add_callback(ilora)
            trainer.train()
            model, lora, replay = trainer.model, None, trainer.train_dataset
        ends[watched] = {k: v.clone() for k, v in model.state_dict().items()}, told.logged
    (with_it, logged), (without, plain) = ends[True], ends[False]
    assert all(torch.equal(with_it[name], without[name]) for name in without)
    own = [entry for entry in logged if "loss" in entry]
    assert [(e["entropy"], e["mean_token_accuracy"]) for e in own] == [
        (e["entropy"], e["mean_token_accuracy"]) for e in plain if "loss" in e
    ]
    run = mc.load_run(tmp_path / "run")
    assert [m.label for m in run.minima_of("slow")] == ["1-zeta", "2-alpha"]
    (at_save,) = [e for e in logged if e["step"] == 3]
    assert {"forgetting/zeta/loss", "forgetting/alpha/score"} <= at_save.keys() and "entropy" not in at_save
    assert "barrier/mean_old" in logged[-1]
    assert run.config["strategy_settings"]["consistency_weight"] == 1.0
