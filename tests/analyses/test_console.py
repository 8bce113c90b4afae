"""What scripts say on a terminal, in a pipe and to a machine."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).parents[2]
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|38;|9[0-7])[\d;]*m")
PLAIN = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE")}


@pytest.fixture
def console():
    """The module, answering with text, whatever a script in this process was asked for before, and again afterwards."""
    from mcanalysis.cli import console

    console.answer_in_json(False)
    yield console
    console.answer_in_json(False)


def on_a_terminal(program, *, stdout_too=True, **environment):
    """Run a program with stderr, and stdout unless it is to be a pipe, on a terminal: what came to (terminal, pipe)."""
    ours, theirs = pty.openpty()
    environment = PLAIN | {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", **environment}
    done = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=theirs, stdin=theirs,
        stdout=theirs if stdout_too else subprocess.PIPE,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the program ended, and with it the terminal
            break
        if not piece:
            break
        seen += piece
    with done:
        piped = done.stdout.read().decode() if done.stdout else ""
    os.close(ours)
    return seen.decode(), piped


ROWS = "[['path', 'gain [95 %]'], ['linear', '+0.25 [-0.01, +1.00]'], ['bezier', '–']]"


def test_a_table_in_a_pipe_is_plain_text_as_wide_as_it_takes(console, capsys):
    console.table([["name", "score"], ["x" * 200, "0.5"], ["[red]y[/red]", "10.25"], ["z", "–"]])
    console.table([["minimum"], ["2-A"], ["10-B"]])  # a name that begins with a number is none
    lines = capsys.readouterr().out.splitlines()
    assert lines[5:] == ["minimum", "───────", "2-A", "10-B"]
    assert "\x1b" not in "".join(lines)
    assert re.fullmatch("x{200} +0.5", lines[2]) and lines[3].startswith("[red]y[/red]") and lines[3].endswith(" 10.25")
    assert all(line == line.rstrip() for line in lines)


def test_a_table_on_a_terminal_has_a_bold_head_and_keeps_its_brackets():
    seen, _ = on_a_terminal(f"from mcanalysis.cli import console; console.table({ROWS})")
    assert "\x1b[1m" in seen and "+0.25 [-0.01, +1.00]" in seen


def test_colours_respect_no_color():
    program = "from mcanalysis.cli import console; console.fail('Expected [a], got [b]; do c.')"
    seen, _ = on_a_terminal(program)
    assert COLOUR.search(seen)
    seen, _ = on_a_terminal(program, NO_COLOR="1")
    assert not COLOUR.search(seen)
    assert re.sub(r"\x1b\[[\d;]*m", "", seen).strip() == "error: Expected [a], got [b]; do c."


def test_an_error_is_one_line_in_a_pipe(console, capsys):
    console.fail("Expected a, got " + "b " * 200 + "; do c.")
    assert capsys.readouterr().err == "error: Expected a, got " + "b " * 200 + "; do c.\n"


BARS = """
from mcanalysis.cli import console
outer = console.bar(total=2, desc="jobs")
for name in ("one", "two"):
    inner = console.bar(total=3, desc=name)
    inner.update(3)
    print("done", name)
    inner.close()
    outer.update()
outer.close()
outer.close()
console.bar(total=1, desc="another").update()
console.fail("it broke")
"""


def test_a_bar_does_not_swallow_what_goes_to_a_pipe():
    seen, piped = on_a_terminal(BARS, stdout_too=False)
    assert piped == "done one\ndone two\n"
    assert "jobs" in seen and "2/2" in seen
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h") == 2  # the cursor is hidden and shown again
    last = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", seen).replace("\r", "").rstrip().splitlines()[-1]
    assert last == "error: it broke"


def test_bars_are_quiet_in_a_pipe_but_for_a_line_every_half_minute(console, capsys, monkeypatch):
    clock = iter([0.0, 1.0, 31.0, 32.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(console, "_said", None)
    bar = console.bar(total=4, desc="paths")
    for _ in range(3):
        bar.update()
    bar.close()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "paths: 2 of 4, 0 min 31 s left\n")


def test_all_jobs_share_the_lines_and_a_job_within_a_job_is_told_with_it(console, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console, "_said", None)
    monkeypatch.setattr(console, "_jobs", [])
    outer = console.bar(total=5, desc="pieces")
    first, second = (console.bar(total=1000, desc=f"scoring {name} (tokens)") for name in "ab")
    for now[0] in (10.0, 20.0, 29.0, 31.0, 45.0, 60.0, 62.0):
        first.update(100)
        second.update(50)
    first.close()
    outer.update()
    for now[0] in (70.0, 95.0):
        second.update(100)
    assert capsys.readouterr().err.splitlines() == [
        "pieces: 0 of 5; scoring a (tokens): 400 of 1,000, 0 min 46 s left",  # 31 s for 400
        "pieces: 0 of 5; scoring a (tokens): 700 of 1,000, 0 min 27 s left",
        "pieces: 1 of 5, 3 min 35 s left; scoring b (tokens): 550 of 1,000, 1 min 18 s left",
    ]


def test_a_job_within_a_job_has_a_bar_on_a_terminal_once_it_takes_a_while():
    program = """
import time
from mcanalysis.cli import console
console.SHOWN_AFTER = 0.4
outer = console.bar(total=2, desc="pieces")
for seconds, name in ((0.0, "brief"), (1.2, "lengthy")):
    inner = console.bar(total=2, desc=name)
    inner.update()
    time.sleep(seconds)
    inner.update()
    inner.close()
    outer.update()
outer.close()
"""
    seen, _ = on_a_terminal(program)
    assert "pieces" in seen and "lengthy" in seen and "brief" not in seen


def test_the_time_left_is_told_from_a_tenth_of_a_job_on(console, capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_EVERY", 0)
    monkeypatch.setattr(console, "_jobs", [])
    bar = console.bar(total=38, desc="jobs")
    bar.update()
    bar.update(3)
    first, later = capsys.readouterr().err.splitlines()
    assert first == "jobs: 1 of 38" and later.startswith("jobs: 4 of 38, ") and later.endswith(" left")


def test_only_the_first_process_has_bars(console, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(console, "LINE_EVERY", 0)
    bar = console.bar(total=1, desc="paths")
    bar.update()
    bar.close()
    assert capsys.readouterr().err == ""


def test_whoever_reads_no_further_is_no_mistake():
    say_much = "lambda: [console.say('x' * 99) for _ in range(9999)]"
    program = f"from mcanalysis.cli import console, running; running.run_script({say_much})"
    environment = PLAIN | {"PYTHONPATH": str(REPOSITORY)}
    command = f'{sys.executable} -c "{program}" | head -1'
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "x" * 99 + "\n" and done.stderr == ""


def test_a_narrow_terminal_loses_no_word():
    rows = "[['transition', 'barrier'], ['1-C-STANCE → 2-MeetingBank', '0.25']]"
    seen, _ = on_a_terminal(f"from mcanalysis.cli import console; console.table({rows})", COLUMNS="20")
    assert "…" not in seen


def test_json_is_one_document_with_unrounded_numbers(console, capsys):
    console.answer_in_json(True)
    console.say("for a person")
    console.table([["a"], ["b"]])
    console.figure(Path("x.png"))
    frame = pd.DataFrame({"task": ["Ä", "b"], "loss": [1 / 3, float("nan")], "count": [1, 2]})
    console.answer({"losses": frame}, seconds=1.5)
    document = json.loads(capsys.readouterr().out)
    assert document["figures"] == ["x.png"] and document["seconds"] == 1.5
    first, second = document["tables"]["losses"]
    assert first == {"task": "Ä", "loss": pytest.approx(1 / 3, abs=1e-15), "count": 1}
    assert second == {"task": "b", "loss": None, "count": 2}


def test_a_figure_that_grows_is_told_of_once(console, capsys):
    console.answer_in_json(False)
    for _ in range(3):
        console.growing_figure(Path("x.png"))
    console.figure(Path("x.png"))
    console.figure(Path("y.png"))
    first, second = capsys.readouterr().out.strip().split("\n")
    assert first.endswith(" s, which grows as more is measured: x.png") and second.endswith(" s: y.png")


def test_text_is_no_json(console, capsys):
    console.answer({"losses": pd.DataFrame({"loss": [1.0]})})
    assert capsys.readouterr().out == ""


def test_a_script_answers_in_json(script):
    code, out, err = script("train", "--dry-run", "--tasks", "FOMC,MeetingBank", "--steps", "3", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["script"] == "train" and document["strategy"] == "ilora"
    assert [row["task"] for row in document["tables"]["stages"]] == ["FOMC", "MeetingBank"]
    assert document["memory_bytes"]["total"] > 1e6


def test_a_mistake_leaves_stdout_empty(script):
    code, out, err = script("train", "--json", "--model", "nowhere/at/all")
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_a_bar_whose_total_grows_tells_the_new_one(monkeypatch, capsys):
    from mcanalysis.cli import console

    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    monkeypatch.setattr(console, "_jobs", [])
    lines = console.bar(total=2, desc="pieces")
    lines.total = 40
    lines.update(1)
    assert capsys.readouterr().err.startswith("pieces: 1 of 40")
    bar = console._Bar(2, "pieces")
    bar.total = 40
    assert bar.total == 40
    bar.close()
