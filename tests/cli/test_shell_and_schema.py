"""Completion and schemas are made from the flags, and say what the parser does."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from mcanalysis import __main__ as dispatcher

REPOSITORY = Path(__file__).parents[2]
OURS = [  # each says in its head which script it is for; those of accelerate are not ours
    f
    for f in sorted([*(REPOSITORY / "analyses/configs").glob("*.yaml"), *(REPOSITORY / "analyses/real").glob("*.yaml")])
    if not f.name.startswith("accelerate")
]


@pytest.fixture
def dispatched(monkeypatch, capsys):
    """`dispatched("schema", "train")` → exit code, stdout, stderr of `python -m mcanalysis schema train`."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["mcanalysis", *words])
        code = 0
        try:
            dispatcher.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def test_the_configurations_of_the_repository_are_valid_and_mistyped_ones_not(dispatched):
    assert len(OURS) == 6
    for file in OURS:
        text = file.read_text(encoding="utf-8")
        script = re.search(r"python analyses/(\w+)\.py --config", text)[1]
        code, out, err = dispatched("schema", script)
        assert (code, err) == (0, "")
        schema = json.loads(out)
        Draft202012Validator.check_schema(schema)
        checker, values = Draft202012Validator(schema), yaml.safe_load(text)
        assert not list(checker.iter_errors(values)), file
        assert checker.is_valid({name.replace("-", "_"): value for name, value in values.items()})
        for wrong in (
            {"modle": "embedded"},
            {"steps": "many"},
            {"tasks": {"A": 1}},
            {"config": "x"},
            {"batch-size": 1.5},
        ):
            assert not checker.is_valid(values | wrong), wrong
    assert schema["properties"]["num-points"]["default"] == 21
    assert "both ends included" in schema["properties"]["num-points"]["description"]


def test_bash_completes_names_flags_and_choices(dispatched, tmp_path):
    code, out, err = dispatched("completion", "bash")
    assert (code, err) == (0, "")
    (tmp_path / "mcanalysis").write_text(out)

    def completed(*words):
        listed = " ".join(f"'{word}'" for word in ("mcanalysis", *words))
        program = f"source mcanalysis; COMP_WORDS=({listed}); COMP_CWORD={len(words)}; _mcanalysis"
        done = subprocess.run(
            ["bash", "-c", program + '; printf "%s\\n" "${COMPREPLY[@]}"'], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout.split()

    assert completed("con") == ["connectivity", "convert"]
    assert set(completed("train", "--lora-")) == {"--lora-rank", "--lora-alpha", "--lora-dropout"}
    assert completed("connectivity", "--run", "a", "--num-p") == ["--num-points"]
    assert completed("train", "--schedule", "co") == ["cosine", "constant"]
    assert completed("figures", "--sty") == ["--style"] and completed("report", "ru") == []  # files, by the shell
    zsh = dispatched("completion", "zsh")[1]
    assert "bashcompinit" in zsh and zsh.endswith(out[out.index("_mcanalysis()") :])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("completion", "fish"), "Unknown shell 'fish'. Expected one of: bash, zsh."),
        (("completion",), "Unknown shell ''"),
        (("schema", "trian"), "Unknown script 'trian'. Did you mean 'train'?"),
    ],
)
def test_an_unknown_shell_or_script_is_one_line(dispatched, words, said):
    code, out, err = dispatched(*words)
    assert code == 2 and not out and err.count("\n") == 1 and said in err
