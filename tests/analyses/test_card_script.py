"""The card on the command line."""

import json

import pytest

SMALL = ("--num-points", 3, "--workers", 1, "--max-new-tokens", 2)


def test_a_card_of_two_tasks_names_the_base_of_the_adapters_and_both_files_are_written(adapter_folder, script):
    code, out, err = script("card", "first", "second", "--data", "old.json,new.json", *SMALL)
    assert code == 0, err
    page = (adapter_folder / "runs/card-first-second/card.md").read_text()
    assert "Straight in the weights" in out and all(f"| {task} | 4 | 2 |" in page for task in ("old", "new"))
    row = next(line for line in page.splitlines() if line.startswith("| delta | mean of both"))
    assert row.split(" | ")[-1] == "0.50 |"  # t* of both tasks together
    assert (adapter_folder / "runs/card-first-second/card.html").read_text().startswith("<!doctype html>")
    code, out, err = script("card", "first", "second", "--data", "old.json,new.json", *SMALL, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["t_star"] == 0.5 and answer["pushed"] is None and len(answer["verdict"]) >= 4
    code, _, err = script("card", "second", "first", "--data", "old.json", "--output-dir", "runs/card-first-second")
    assert (
        code == 2
        and "another configuration" in err
        and (adapter_folder / "runs/card-first-second/card.md").read_text() == page
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("first",), "SECOND, two adapters, got first alone"),
        (("run",), "got a run; two of its minima are run/minima/1-A/fast run/minima/2-B/fast"),
        (("first", "second"), "--data FILE"),
        (("first", "second", "--data", "old.json", "--t", 0.5), "with --push"),
        (("first", "second", "--data", "old.json", "--push", "me/mine", "--t", 2), "from 0 to 1"),
        (("first", "second", "--data", "old.json", "--push", "me/mine"), "a token of the hub"),
        (("first", "nowhere", "--data", "old.json"), "'nowhere'"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_is_written(adapter_folder, script, monkeypatch, flags, words):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    for label in ("1-A", "2-B"):
        (adapter_folder / "run/minima" / label / "fast").mkdir(parents=True)
    code, _, err = script("card", *flags)
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1, err
    assert not (adapter_folder / "runs").exists()
