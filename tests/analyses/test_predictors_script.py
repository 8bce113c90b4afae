"""`analyses/predictors.py` refuses too few transitions in one line, before anything is trained."""


def test_too_few_transitions_are_refused_before_training(script, base_folder, tmp_path):
    code, _, err = script("predictors", "--strategy", "er,sequential", "--model", base_folder, "--workers", 1)
    assert code == 2 and len(err.splitlines()) == 1 and not (tmp_path / "runs").exists()
    assert "transitions of 3 runs or more" in err and "got 14 of 2; add runs with --run, --seed or --strategy" in err
    code, _, err = script("predictors", "--signals", "kl_nwe")
    assert code == 2 and "Did you mean 'kl_new'" in err
