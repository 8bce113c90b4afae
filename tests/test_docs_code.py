"""The pages run as they stand: Python blocks in an empty folder, the guides' commands with smaller numbers, all flags.

A block below `<!-- not run: reason -->` is not run; the flags of its commands are checked all the same.
"""

import contextlib
import importlib
import importlib.util
import io
import pkgutil
import re
import runpy
import shlex
import sys
import types
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import mcanalysis

REPOSITORY = Path(__file__).parents[1]
PAGES = {file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / "docs").rglob("*.md")}
PAGES |= {file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / "mcanalysis").rglob("README.md")}
PAGES = sorted(PAGES | {"README.md", "STUDY.md"})
FENCE = re.compile(r"^(<!-- not run: .*? -->\n)?```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)

# What makes a page's command quick: flags beyond those it has, or in their place.
TRAINING = "--steps 2 --num-train 8 --num-test 4 --batch-size 4"
PATHS = "--num-points 2 --num-examples 2 --curve-steps 2 --workers 1"
SMALLER = {"connectivity": f"{TRAINING} {PATHS}", "train": TRAINING, "benchmark": "--steps 2"}
SMALLER["card"] = "--num-points 3 --num-examples 2 --workers 1"
SMALLER["early"] = f"{TRAINING} --tasks FOMC,ScienceQA,MedMCQA --num-points 2 --workers 1"
PUBLIC_MODULES = {  # beside what the packages' `__all__` name
    "connectivity": "early ensemble gauge losses module_objective simplex_grid",
    "landscape": "eigenvalues grid hessian predicted_forgetting sharpness slices spectral_density trace trajectory_pca",
    "metrics": "calibration front prediction_similarity representation_similarity",
    "params": "gauge merging subspace_overlap weight_distance",
}
NEEDS_TWO_RUNS = "docs/report.md", "docs/figures.md"


def read(page):
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page):
    """(language, text, line, whether to run it) of each block of a page."""
    text = read(page)
    return [(m[2], m[3], text[: m.start(3)].count("\n"), not m[1]) for m in FENCE.finditer(text)]


def commands(page):
    """The commands of a page, as lists of words, without comments."""
    for language, text, _, run in blocks(page):
        if language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield words, run


def python_script(words):
    """(script, flags) of a command that runs a script of ours, however it is started; else None."""
    for place, word in enumerate(words):
        if re.fullmatch(r"(analyses|figures)/\w+\.py", word):
            return REPOSITORY / word, words[place + 1 :]
        if word == "figures" and words[place - 1].endswith("python"):
            return REPOSITORY / "figures", words[place + 1 :]
        if word == "mcanalysis" and place and words[place - 1] == "-m" and words[place + 1 :]:
            script = REPOSITORY / "analyses" / f"{words[place + 1]}.py"
            return (script, words[place + 2 :]) if words[place + 1] != "drift" else None  # a page's own study
    return None


def with_flags(flags, more):
    """Flags of which those that are named in `more`, all of them with one value, have the value there."""
    more = more.split()
    places = [i for i, flag in enumerate(flags) if flag in more[::2]]
    return [flag for i, flag in enumerate(flags) if i not in places and i - 1 not in places] + more


def run_script(script, flags, monkeypatch):
    """Run a script in this process, as its own program: what it printed; any exit code but 0 fails."""
    known = set(sys.modules)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *flags])
        patch.syspath_prepend(str(script if script.is_dir() else script.parent))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                runpy.run_path(str(script), run_name="__main__")
            except SystemExit as end:
                assert not end.code, f"{script.name} {shlex.join(flags)}: exit code {end.code}"
    for name in set(sys.modules) - known:  # scripts' siblings: two folders have files of one name
        file = getattr(sys.modules[name], "__file__", None) or ""
        if Path(file).parent in (REPOSITORY / "analyses", REPOSITORY / "figures"):
            del sys.modules[name]
    return printed.getvalue()


def run_page(page, monkeypatch, names=None):
    """Run a page from top to bottom; gives the names that its Python blocks left."""
    names = {} if names is None else names
    for language, text, line, run in blocks(page):
        if not run:
            continue
        if language == "python":
            exec(compile("\n" * line + text, page, "exec"), names)
        if language == "bash":
            for row in text.replace("\\\n", " ").splitlines():
                words = shlex.split(row, comments=True)
                if found := python_script(words):
                    script, flags = found
                    environment = [w.split("=", 1) for w in words[: words.index("python")]]
                    with monkeypatch.context() as patch:
                        for key, value in environment:
                            patch.setenv(key, value)
                        run_script(script, with_flags(flags, SMALLER.get(script.stem, "")), monkeypatch)
    return names


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():  # the pages seed the global state, as a reader would
        yield tmp_path


@pytest.fixture(scope="module")
def tutorial_folder(tmp_path_factory):
    """A folder in which the tutorial was followed, and the names that its Python left."""
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(folder)
        names = run_page("docs/tutorial.md", patch)
    return folder, names


def test_tutorial(tutorial_folder, monkeypatch):
    folder, names = tutorial_folder
    monkeypatch.chdir(folder)
    assert (folder / "fomc.png").stat().st_size > 1000
    assert (folder / "halfway" / "adapter_config.json").exists()
    assert len(names["profile"].losses) == 5
    assert [minimum.label for minimum in names["run"].minima] == ["1-C-STANCE", "2-FOMC", "3-MeetingBank"]


def test_readme(tutorial_folder, monkeypatch):
    """Its Python is about the demo's run: here it meets the tutorial's, which has the same first tasks."""
    monkeypatch.chdir(tutorial_folder[0])
    (python,) = [text for language, text, _, _ in blocks("README.md") if language == "python"]
    names: dict = {}
    exec(python.replace("runs/", "runs/tutorial/").replace("num_steps=60", "num_steps=3"), names)
    assert 0 <= names["profile"].chord_barrier() < 20


def test_jupyter(tutorial_folder, monkeypatch):
    """Here there is no notebook, so what would be a widget is a picture."""
    monkeypatch.chdir(tutorial_folder[0])
    (python,) = [text for language, text, _, _ in blocks("docs/jupyter.md") if language == "python"]
    exec(python.replace("runs/", "runs/tutorial/"), {})


@pytest.mark.parametrize("page", NEEDS_TWO_RUNS)
def test_pages_about_finished_runs(page, tutorial_folder, monkeypatch):
    folder, _ = tutorial_folder
    monkeypatch.chdir(folder)
    for words, _ in commands(page):
        script, flags = python_script(words) or (REPOSITORY, [])
        if "--run" in flags or script.stem == "report":
            run_script(script, flags, monkeypatch)
    made = "*.html" if page == "docs/report.md" else "linear_connectivity*.png"
    assert list(folder.glob(f"runs/tutorial/**/{made}"))


def test_geometry(empty_folder, capsys):
    names = run_page("docs/geometry.md", None)
    drawn = {file.name for file in empty_folder.iterdir()}
    assert drawn == {f"geometry-{name}.png" for name in ("spaces", "valley", "barriers")}
    for name in drawn:
        assert f"]({name})" in read("docs/geometry.md") and (REPOSITORY / "docs" / name).exists()
    assert names["losses"].max() > names["end"]  # the picture of barriers has one of each kind
    assert capsys.readouterr().out


def test_merging(empty_folder, monkeypatch):
    run_page("docs/merging.md", monkeypatch)


def test_evaluation(empty_folder, monkeypatch):
    names = run_page("docs/evaluation.md", monkeypatch)
    assert 0 < names["early"].saving < 1


def test_output(empty_folder, monkeypatch):
    assert run_page("docs/output.md", monkeypatch)["answer"]["num_trained"] > 0


def test_your_own_adapters(empty_folder, capsys, monkeypatch):
    names = run_page("docs/your-own-adapters.md", monkeypatch)
    for folder in ("first", "second", "middle"):
        assert (empty_folder / folder / "adapter_config.json").exists()
    for file in ("figures/connectivity_fast.png", "tables/profiles.csv", "tables/barriers.csv"):
        assert (empty_folder / "between" / file).stat().st_size > 100
    assert (empty_folder / "profile.png").stat().st_size > 1000
    assert 0 < names["error"] < 1
    assert names["bent"].max_barrier() < names["straight"].max_barrier() / 3
    first, last = names["profile"].losses[[0, -1]]
    assert max(first, last) < 1.2  # both were trained: the untrained base has a loss of 2.5 and more


@pytest.mark.slow
def test_lm_eval(empty_folder, capsys, monkeypatch):
    """Both columns of the table are equal, and it is the page's, but for digits that are another machine's."""
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    exec(next(text for language, text, _, _ in blocks("docs/your-own-adapters.md") if language == "python"), {})
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # calls a dozen programs
    run_page("docs/lm-eval.md", monkeypatch)
    printed, shown = (
        [line.split(" | ") for line in text.splitlines() if line.startswith(("| first ", "| second "))]
        for text in (capsys.readouterr().out, read("docs/lm-eval.md"))
    )
    assert len(printed) == 8 and all(theirs == ours.removesuffix(" |") for _, _, theirs, ours in printed)
    assert [row[:2] for row in printed] == [row[:2] for row in shown]
    assert all(theirs == ours.removesuffix(" |") for _, _, theirs, ours in shown)


def test_card(empty_folder, monkeypatch):
    names = run_page("docs/card.md", monkeypatch)
    assert "t*" in names["card"].verdict[-1] and names["middle"]
    for file in ("runs/card-1-C-STANCE-2-FOMC/card.md", "quick/card.html"):
        assert (empty_folder / file).stat().st_size > 1000


def test_your_own_model(empty_folder, monkeypatch):
    names = run_page("docs/your-own-model.md", monkeypatch)
    assert names["run"].config["model"] == "my-model"


def test_your_own_network(empty_folder, capsys):
    (python,) = [text for language, text, _, _ in blocks("docs/your-own-network.md") if language == "python"]
    assert len([line for line in python.splitlines() if line.strip()]) <= 20
    names: dict = {}
    exec(python, names)
    line, curve = names["line_profile"], names["curve_profile"]
    assert curve.chord_barrier() < 0.2 * line.chord_barrier()
    assert line.chord_barrier_interval()[0] > 0.0
    assert capsys.readouterr().out


def test_your_own_task(empty_folder, monkeypatch):
    run_page("docs/your-own-task.md", monkeypatch)
    matrix = (empty_folder / "runs/my-data/trace-sequential-seed0/tables/accuracy_matrix.csv").read_text()
    assert matrix.startswith("after,Capitals,Colours")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_your_own_trainer(empty_folder, monkeypatch, capsys):
    """Three scripts, each with ten lines at most that are ours; what they left is read by the command at the end."""
    pytest.importorskip("trl", reason="TRL is not installed: pip install 'mcanalysis[trl]'")
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(empty_folder / "cache"))
    run_page("docs/your-own-trainer.md", monkeypatch)
    for name, learners in (("trl", ["fast"]), ("trainer", ["fast", "slow"]), ("loop", ["fast"])):
        run = mcanalysis.load_run(f"runs/{name}")
        assert [minimum.label for minimum in run.minima] == ["1-FOMC", "2-ScienceQA"] and run.learners == learners
        if name != "loop":
            assert (run.directory / "figures" / f"connectivity_{run.answering_learner}.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert said.count("'barrier/mean_old'") == 3 and "'general/pretraining-text/loss'" in said
    for language, text, _, _ in blocks("docs/your-own-trainer.md"):
        ours = ("ForgettingCallback", "IloraCallback", "ConsistencyMixin", "callback", "ilora")
        lines = [line for line in text.splitlines() if any(word in line for word in ours)]
        assert language != "python" or len(lines) <= 10


@pytest.mark.slow
def test_your_own_strategy(empty_folder, monkeypatch):
    """In a process of its own: which strategies there are is read once."""
    import os
    import subprocess

    (python,) = [text for language, text, _, _ in blocks("docs/your-own-strategy.md") if language == "python"]
    exec(python, {})
    ((words, _),) = commands("docs/your-own-strategy.md")
    script, flags = python_script(words)
    variable, folder = words[0].split("=")
    done = subprocess.run(
        [sys.executable, str(script), *with_flags(flags, TRAINING)],
        env={**os.environ, variable: folder}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "runs/half" in done.stdout and (empty_folder / "runs/half/manifest.json").exists()


@pytest.fixture
def as_package(install_package):
    """`as_package(page)` installs a page's first Python block as its toml block says; the name it has, and its file."""
    import tomllib

    def install(page):
        (toml,) = [tomllib.loads(text) for language, text, _, _ in blocks(page) if language == "toml"]
        ((group, entries),), (module,) = (
            toml["project"]["entry-points"].items(),
            toml["tool"]["setuptools"]["py-modules"],
        )
        source = next(text for language, text, _, _ in blocks(page) if language == "python")
        site = install_package(toml["project"]["name"], group, entries, {module: source})
        ((name, value),) = entries.items()
        assert value.partition(":")[0] == module
        return name, site / f"{module}.py"

    return install


def python_of(page):
    """The names that a page's Python blocks leave."""
    names: dict = {"__name__": page}
    for language, text, line, _ in blocks(page):
        if language == "python":
            exec(compile("\n" * line + text, page, "exec"), names)
    return names


def test_your_own_path(empty_folder, as_package):
    from mcanalysis.paths.path_kinds import path_kind

    page = "docs/your-own-path.md"
    name, _ = as_package(page)
    assert path_kind(f"{name}-delta").path_class.__module__ == "arc"
    names = python_of(page)
    assert [float(names[point]["w"].norm()) for point in ("middle", "straight")] == pytest.approx([3, 3 / 2**0.5])
    generator = torch.Generator().manual_seed(0)
    shapes = {"q.lora_A.weight": (2, 5), "q.lora_B.weight": (4, 2)}
    a, b = ({n: torch.randn(s, generator=generator).double() for n, s in shapes.items()} for _ in range(2))

    def change(point):
        return point["q.lora_B.weight"] @ point["q.lora_A.weight"]

    for space in ("factor", "delta", "aligned"):
        path = names["Arc"](a, b, space=space)
        for t, end in ((0.0, a), (1.0, b)):
            torch.testing.assert_close(change(path(t)), change(end))
        faster, slope = (
            (path(0.3 + 1e-6)["q.lora_B.weight"] - path(0.3)["q.lora_B.weight"]) / 1e-6,
            path.derivative(0.3),
        )
        torch.testing.assert_close(faster, slope["q.lora_B.weight"], atol=1e-4, rtol=1e-4)
    # In delta space, from the angle of the two ΔW by hand.
    first, last = change(a), change(b)
    angle = torch.acos((first * last).sum() / first.norm() / last.norm())
    expected = (torch.sin(0.75 * angle) * first + torch.sin(0.25 * angle) * last) / torch.sin(angle)
    torch.testing.assert_close(change(names["Arc"](a, b, space="delta")(0.25)), expected)
    # The best bend for a quadratic loss with its minimum at the origin (geometry.md).
    torch.testing.assert_close(
        names["curve"].bends[0]["w"], -0.75 * (names["a"]["w"] + names["b"]["w"]), rtol=1e-2, atol=0
    )


@pytest.mark.slow
def test_the_command_of_your_own_path(as_package, empty_folder, monkeypatch):
    as_package("docs/your-own-path.md")
    ((words, _),) = commands("docs/your-own-path.md")
    script, flags = python_script(words)
    run_script(script, with_flags(flags, SMALLER["connectivity"]), monkeypatch)
    profiles = (empty_folder / "runs/arc/embedded-sequential-seed0/tables/profiles.csv").read_text()
    assert ",arc," in profiles and ",linear," in profiles


def test_your_own_score(empty_folder, as_package, capsys):
    from mcanalysis.metrics import get_score

    page = "docs/your-own-score.md"
    name, _ = as_package(page)
    python_of(page)
    assert capsys.readouterr().out == "1.0 0.0\n"
    assert get_score(name).per_example("It is Paris.", "paris") == 1.0 and not get_score(name).parses(" ")


@pytest.mark.slow
def test_the_command_of_your_own_score(as_package, empty_folder, monkeypatch):
    as_package("docs/your-own-score.md")
    run_page("docs/your-own-score.md", monkeypatch)
    assert "contains" in (empty_folder / "runs/contains/manifest.json").read_text()


def test_your_own_figure(tutorial_folder, as_package, empty_folder, monkeypatch):
    import pandas as pd

    page = "docs/your-own-figure.md"
    name, file = as_package(page)
    run = tutorial_folder[0] / "runs/tutorial/embedded-sequential-seed0"
    scores = pd.read_csv(run / "tables/accuracy_matrix.csv").set_index("after")
    expected = [scores.iloc[k, k - 1] - scores.iloc[-1, k - 1] for k in range(1, len(scores))]
    for script, more in ((file, []), (REPOSITORY / "figures", ["--only", name])):
        folder = empty_folder / script.stem
        flags = ["--run", str(run), "--width", "acl", "--format", "png", "--output-dir", str(folder), *more]
        assert run_script(script, flags, monkeypatch) == f"{folder / f'lost_{run.name}.png'}\n"
        assert pd.read_csv(folder / f"lost_{run.name}.csv").lost.tolist() == pytest.approx(expected)


def test_your_own_study(tutorial_folder, as_package, empty_folder, monkeypatch, capsys):
    """By itself and by name: the lengths are those of the matrices, whole."""
    import json

    import pandas as pd

    from mcanalysis import __main__ as by_name

    name, file = as_package("docs/your-own-study.md")
    run = mcanalysis.load_run(tutorial_folder[0] / "runs/tutorial/embedded-sequential-seed0")

    def whole(point):
        modules = [key.removesuffix(".lora_A.weight") for key in point if key.endswith("lora_A.weight")]
        parts = [point[f"{m}.lora_B.weight"].double() @ point[f"{m}.lora_A.weight"].double() for m in modules]
        return torch.cat([part.flatten() for part in parts])

    points = [whole(minimum.point) for minimum in run.minima]
    length = [float(point.norm()) for point in points]
    step = [length[0], *(float((b - a).norm()) for a, b in pairwise(points))]

    flags = ["--run", str(run.directory), "--learner", "fast", "--workers", "1"]
    said = run_script(file, flags, monkeypatch)
    assert "2-FOMC" in said and f"{length[1]:.3f}" in said and f"{step[2]:.3f}" in said
    table = pd.read_csv(run.directory / "tables/drift.csv")
    assert table.length.tolist() == pytest.approx(length, rel=1e-5)
    assert table.step.tolist() == pytest.approx(step, rel=1e-5)
    assert (run.directory / "figures/drift.png").stat().st_size > 1000

    monkeypatch.setattr("mcanalysis.params.weight_distance.weight_distance", None)  # all of it is kept
    monkeypatch.setattr(sys, "argv", ["mcanalysis", name, *flags, "--json"])
    capsys.readouterr()
    by_name.main()
    answered = pd.DataFrame(json.loads(capsys.readouterr().out)["tables"]["drift"])
    pd.testing.assert_frame_equal(answered, table)
    monkeypatch.setattr(sys, "argv", ["mcanalysis", name, "--run", str(run.directory), "--learner", "slow"])
    with pytest.raises(SystemExit, match="2"):
        by_name.main()
    refused = capsys.readouterr()
    assert refused.out == "" and "Unknown learner" in refused.err and refused.err.count("\n") == 1


def test_the_product_average(capsys):
    """Nothing was cut, so that the average is the plain one; its error is that of float64 sums."""
    names = python_of("mcanalysis/params/README.md")
    assert len(names["average"].correction["q.lora_A.weight"]) == 3 * 8  # past 3 · rank it would be cut
    assert float(capsys.readouterr().out.split("(")[1].split(",")[0]) < 1e-14


def test_studies_that_share_pieces(capsys):
    """Powers of two up to the first that reaches the larger limit, 64, each computed once; 2⁴ and 2⁶ reach theirs."""
    python_of("mcanalysis/studies/README.md")
    assert capsys.readouterr().out.splitlines() == [*(f"computed: 2^{n}" for n in range(2, 7)), "[4, 6]"]


def test_classics(empty_folder):
    names: dict = {}
    (python,) = [text for language, text, _, _ in blocks("docs/classics.md") if language == "python"]
    exec(python, names)
    a = names["a"]
    before, after = (sum(((a[k] - b[k]) ** 2).sum() for k in a) for b in (names["b"], names["b_in_order"]))
    assert after <= before


def test_finders(empty_folder, capsys):
    """The first block prints the table's columns of 70 gradients."""
    names = python_of("docs/finders.md")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line.strip("| ").split(" | ") for line in read("docs/finders.md").splitlines() if line.count(" | ") == 6]
    rows = rows[2:]  # head and rule
    assert len(rows) == 8 and [row[0].replace("`", "").replace(",", "").split() for row in rows] == [
        words[:3] for words in printed[:8]
    ]
    for row, words in zip(rows, printed, strict=False):
        assert [float(row[i]) for i in (1, 3, 5)] == pytest.approx([float(w) for w in words[3:]], abs=0.05)
    assert names["Falling"].name == "falling"


def test_a_signal_of_ones_own():
    step = {"q.lora_A.weight": torch.eye(1, 3), "q.lora_B.weight": torch.ones(2, 1)}
    start = step | {"q.lora_B.weight": 4 * torch.ones(2, 1)}
    names: dict = {}
    for language, text, _, run in blocks("docs/predictors.md"):
        if language == "python" and run:
            exec(text, names)
    assert names["SIGNAL"].of(types.SimpleNamespace(update=step, start=start)) == pytest.approx(
        {"step_over_state": 0.25}
    )


def test_basin(empty_folder, capsys):
    python_of("docs/basin.md")
    radii = [float(word) for word in capsys.readouterr().out.split()]
    assert radii == pytest.approx([(0.2 / h) ** 0.5 / 2 for h in (1.0, 20.0)], abs=2e-3)


def test_every_python_block_is_in_a_test_above():
    """A page with Python that no test names would be shown and never run."""
    source = Path(__file__).read_text(encoding="utf-8")
    for page in PAGES:
        if any(language == "python" and run for language, _, _, run in blocks(page)):
            assert f'"{page}"' in source, page


def test_every_public_name_is_in_the_reference():
    shown = "".join(read(page) for page in PAGES if page.startswith("docs/reference/"))
    shown = set(re.findall(r"^::: (\S+)$", shown, re.MULTILINE))

    def is_missing(name, found):
        home = getattr(found, "__module__", "builtins")
        return home != "builtins" and not {home, f"{home}.{name}"} & shown  # an alias of a type is in no module

    packages = ["mcanalysis", *(f"mcanalysis.{part}" for part in ("params", "paths", "metrics", "symmetry"))]
    missing = []
    for package in map(importlib.import_module, packages):
        missing += [f"{package.__name__}.{n}" for n in package.__all__ if is_missing(n, getattr(package, n))]
    for part, names in PUBLIC_MODULES.items():
        for name in names.split():
            home = f"mcanalysis.{part}.{name}"
            for own, found in vars(importlib.import_module(home)).items():
                if not own.startswith("_") and getattr(found, "__module__", "") == home and is_missing(own, found):
                    missing.append(f"{home}.{own}")
    assert not missing
    for target in shown:  # and nothing is shown that is not there
        pkgutil.resolve_name(target)


def test_the_way_of_one_measured_point_goes_where_it_says():
    """Every name of that section is in the file before it, and every file is there."""
    page = read("docs/development.md")
    section = page.split("## The way of one measured point")[1].split("\n## ")[0]
    steps = re.findall(r"^\d+\. .*", section, re.MULTILINE)
    assert len(steps) == 10
    pairs = re.findall(r"`([\w/]+\.py)`\s`([\w.]+)`", section)
    files = [file for file in re.findall(r"`([\w/]+\.py)`", section)]
    assert sorted(files) == sorted(file for file, _ in pairs) and len(files) > 20
    for file, name in pairs:
        assert pkgutil.resolve_name(f"mcanalysis.{file.removesuffix('.py').replace('/', '.')}:{name}"), name


class Parsed(Exception):  # noqa: N818  (no error: what ends a script once its flags are read)
    """A script has read its flags."""


@pytest.mark.parametrize("page", [p for p in PAGES if any(True for _ in commands(p))])
def test_flags_are_those_of_the_scripts(page, monkeypatch, tmp_path):
    """Every command names a script that is there, and flags it has; `make` targets exist."""
    import argparse

    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *arguments, **keywords):
        parse(self, *arguments, **keywords)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.chdir(REPOSITORY)  # --config files are read
    for words, _ in commands(page):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", read("Makefile"), re.MULTILINE), words
        if (found := python_script(words)) is not None:
            script, flags = found
            assert script.exists(), words
            with pytest.raises(Parsed):
                run_script(script, flags, monkeypatch)


def test_what_a_page_links_to_beside_docs_is_a_page_of_the_site():
    """A link out of docs/ to a file that hooks.py does not name is an error of `make docs`, which no test runs."""
    hooks = (REPOSITORY / "docs" / "hooks.py").read_text("utf-8").replace("{STUDY}", "analyses/study")
    for page in (page for page in PAGES if re.fullmatch(r"docs/[^/]+", page)):
        for target in re.findall(r"\]\(\.\./([^)#:]+)", read(page)):
            assert f'"{target}"' in hooks, f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = read(page)
    folder = (REPOSITORY / page).parent
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (folder / target).exists(), target
    for script in re.findall(r"(?<!tests/)(?:analyses|figures)/[\w/]+\.(?:py|yaml)", text):
        assert script == "analyses/NAME.py" or (REPOSITORY / script).exists(), script


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    import subprocess

    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("needs the extra docs: pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ends with" not in done.stderr
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert not re.findall(
        r'(?:src|href)="https?://(?!arxiv|github|keepachangelog|semver)[^"]+\.(?:js|css|woff2?)"', home
    )
