"""`analyses/curvature.py` end to end on small runs: tables, figures, reuse in workers, refusals in one line."""

import pandas as pd
import pytest

SMALL = (
    "--tasks", "FOMC,MedMCQA,JEC-QA", "--steps", 3, "--num-train", 16, "--num-test", 4, "--batch-size", 4,
    "--num-examples", 3, "--num-forgetting-examples", 2, "--num-eigenvalues", 1, "--num-trace-samples", 2,
    "--num-lanczos", 4, "--tolerance", 0.1,
)  # fmt: skip


@pytest.mark.slow
def test_tables_figures_and_reuse(script, tmp_path):
    code, out, err = script("curvature", *SMALL, "--strategy", "sequential,ilora", "--workers", 2)
    assert code == 0, err
    runs = tmp_path / "runs"
    for folder in (runs / "embedded-sequential-seed0", runs / "embedded-ilora-seed0", runs / "comparison"):
        for name in ("curvature", "spectrum", "predicted_forgetting", "forgetting_correlations"):
            assert len(pd.read_csv(folder / "tables" / f"{name}.csv")) > 0
        for name in ("spectrum", "eigenvalues", "predicted_forgetting"):
            assert (folder / "figures" / f"curvature_{name}.pdf").stat().st_size > 1000
    together = pd.read_csv(runs / "comparison/tables/predicted_forgetting.csv")
    assert set(together.strategy) == {"sequential", "ilora"} and set(together.learner) == {"fast", "slow"}
    assert "3-JEC-QA" in out and "old tasks" in out and "Spearman" in out
    times = {f: f.stat().st_mtime_ns for f in runs.glob("*/curvature/*/*.json")}
    code, again, err = script(
        "curvature", *SMALL, "--run", runs / "embedded-sequential-seed0", "--run", runs / "embedded-ilora-seed0",
        "--workers", 1,
    )  # fmt: skip
    assert code == 0, err
    assert {f: f.stat().st_mtime_ns for f in runs.glob("*/curvature/*/*.json")} == times
    last = [line for line in out.splitlines() if not line.startswith("figure")]
    assert [line for line in again.splitlines() if not line.startswith("figure")] == last


def test_bad_input_is_one_line(script, tmp_path):
    for arguments, words in (
        (("--num-eigenvalues", 0), "num_eigenvalues of at least 1"),
        (("--run", tmp_path / "nothing"), "nothing"),
        (("--strategy", "zero_shot", *SMALL, "--workers", 1), "zero_shot"),
    ):
        code, _, err = script("curvature", *arguments)
        assert code == 2 and words in err.strip().splitlines()[-1], err
        assert err.strip().splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.glob("runs/*/curvature"))
