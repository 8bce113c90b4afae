"""Every paper figure from finished runs: it shows the tables' numbers, writes them beside, names what is missing."""

import io
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from mcanalysis import fonts
from mcanalysis.plotting.style import STYLES, double_column, new_figure, on_page, print_style, save_figure

FIGURES = Path(__file__).parents[2] / "figures"
NAMES = sorted({file.stem for file in FIGURES.glob("*.py")} - {"__main__"})
UNITLESS = ("layer", "after task", "kind of module", "minimum", "density", "eigenvalue", "‖", "λ", "γ")


def by_gid(figure, gid):
    (found,) = figure.findobj(lambda artist: artist.get_gid() == gid)
    return found


def points(figure, gid):
    """Where an error bar's markers are, and the ends of its bars."""
    found = next(c for axes in figure.axes for c in axes.containers if c[0].get_gid() == gid)
    bars = np.array([segment[:, 1] for segment in found[2][0].get_segments()])
    return found[0].get_xydata(), bars


def test_every_file_is_one_of_them(figure_script):
    code, out, _ = figure_script("__main__", "--help")
    assert code == 0 and f"some of {', '.join(NAMES)}" in " ".join(out.split()) and len(NAMES) == 15


@pytest.mark.parametrize("name", NAMES)
def test_each_figure_has_its_data_and_words_and_a_unit_on_every_axis(draw, runs, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that no font has would be one
        pictures = draw(name, *(runs if name == "ablations" else runs[0::2][:2]))
        for picture in pictures:
            with print_style():
                picture.figure.savefig(io.BytesIO(), format="png", dpi=50)
    assert pictures and len({p.stem for p in pictures}) == len(pictures)
    for picture in pictures:
        assert picture.data and all(len(table) for table in picture.data.values())
        assert len(picture.caption) > 60
        words = [t.get_text() for t in picture.figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
        assert min(t.get_fontsize() for t in picture.figure.findobj(Text) if t.get_text().strip()) >= 7
        labels = [f() for axes in picture.figure.axes for f in (axes.get_xlabel, axes.get_ylabel) if axes.axison]
        labels = [label for label in labels if label]
        assert labels or any("position t" in word for word in words)
        for label in labels:
            assert re.search(r"\(|nats|°|0–1|step|distance in", label) or any(u in label for u in UNITLESS), label


def test_a_chinese_name_is_drawn_with_the_shipped_font(draw, runs):
    (picture,) = draw("stability_plasticity", runs[0])
    texts = [t for t in picture.figure.findobj(Text) if "立场" in t.get_text() or "Größe" in t.get_text()]
    assert texts and all(fonts.FAMILY in t.get_fontfamily() for t in texts)
    assert fonts.FILE.stat().st_size < 1.5e6 and "SIL OPEN FONT LICENSE" in fonts.LICENCE.read_text(encoding="utf-8")


def test_the_font_has_the_embedded_tasks_characters():
    ttlib = pytest.importorskip("fontTools.ttLib")
    known = set(ttlib.TTFont(fonts.FILE).getBestCmap())
    folder = Path(fonts.__file__).parents[1]
    text = "".join(f.read_text(encoding="utf-8") for f in (folder / "tasks").rglob("*.py"))
    assert not {c for c in text if "\u3000" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef"} - set(map(chr, known))
    assert set(map(ord, "ÄÖÜäöüß„“–→")) <= known


def test_a_pdf_embeds_its_fonts(draw, runs, tmp_path):
    (picture,) = draw("simplex", runs[0])
    (file,) = save_figure(picture.figure, tmp_path / "simplex", ["pdf"])
    content = file.read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content and b"NotoSansSCSubset" in content


@pytest.mark.parametrize("name", ["ablations", "simplex", "plane"])
def test_the_same_runs_give_the_same_bytes(draw, runs, tmp_path, name):
    for folder in "ab":
        for picture in draw(name, *(runs if name == "ablations" else runs[2:3])):
            save_figure(picture.figure, tmp_path / folder / picture.stem, ["pdf", "png", "svg"])
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) >= 3
    assert all(f.read_bytes() == (tmp_path / "b" / f.name).read_bytes() for f in files)


def test_paths_compared_shows_barriers_and_gains_with_their_intervals(draw, runs):
    picture = draw("paths_compared", runs[0])[0]
    data = picture.data[""]
    assert set(data.task) == {"mean_old", "mean"}
    for column, task, expected in (
        ("chord_barrier", "mean_old", [0.1, 0.2]),
        ("interpolation_gain", "mean", [0.1, 0.2]),
    ):
        for kind in ("linear-factor", "bezier-factor"):
            at, bars = points(picture.figure, f"{column} {kind}")
            np.testing.assert_allclose(at[:, 1], expected)
            np.testing.assert_allclose(bars, [[v - 0.02, v + 0.02] for v in expected])
            quantity = "loss" if task == "mean_old" else "score"
            rows = data[(data.path + "-" + data.space == kind) & (data.task == task) & (data.quantity == quantity)]
            np.testing.assert_allclose(rows[column], expected)


def test_scores_over_time_are_those_of_the_matrices(draw, runs):
    matrices, picture = draw("accuracy_over_time", *runs[:3])
    assert matrices.stem == "accuracy_matrices" and list(picture.data) == [""]
    axes = picture.figure.axes
    sequential = {a.get_title(): by_gid(a, "sequential fast").get_xydata() for a in axes}
    np.testing.assert_allclose(sequential["1 立场检测"], [[0, 0.05], [1, 0.9], [2, 0.0], [3, 0.0]])
    np.testing.assert_allclose(sequential["mean of learned tasks"], [[1, 0.9], [2, 0.45], [3, 0.3]])
    np.testing.assert_allclose(sequential["forgetting so far"], [[2, 0.9], [3, 0.9]])
    rows = picture.data[""]
    rows = rows[(rows.strategy == "ilora") & (rows.task == "FOMC")]
    drawn = by_gid(next(a for a in axes if a.get_title() == "2 FOMC"), "ilora slow").get_xydata()
    np.testing.assert_allclose(drawn, rows[["after", "score"]])


def test_layers_show_cka_and_the_mean_and_range_of_a_layers_modules(draw, runs):
    (picture,) = draw("layers", runs[1])
    at, bars = points(picture.figure, "cka 2-FOMC")
    np.testing.assert_allclose(at[:, 1], [0.8, 0.7])
    np.testing.assert_allclose(bars, [[0.78, 0.82], [0.68, 0.72]])
    at, bars = points(picture.figure, "distance 2-FOMC")
    np.testing.assert_allclose(at[:, 1], [2.5, 3.5])  # k + layer + {0, 1}
    np.testing.assert_allclose(bars, [[2, 3], [3, 4]])
    assert picture.data["distance"].distance_mean.tolist() == [2.5, 3.5, 3.5, 4.5]


def test_the_simplex_has_a_dot_where_it_was_measured_and_a_star_at_the_best(draw, runs):
    (picture,) = draw("simplex", runs[0])
    places = by_gid(picture.figure, "score mean").get_offsets()
    assert len(places) == 10 == len(picture.data[""].drop_duplicates(["w1", "w2", "w3"]))
    assert {tuple(p) for p in np.round(places, 6).tolist()} >= {(0.0, 0.0), (1.0, 0.0), (0.5, 0.866025)}
    assert set(picture.data[""].split) == {"test"}


def test_surfaces_have_the_loss_of_each_node_on_one_scale(draw, runs):
    surfaces = next(p for p in draw("slices", *runs[:3]) if p.stem == "slices_2d")
    mesh = by_gid(surfaces.figure, f"{TASK} ilora slow")
    steps = np.linspace(-1, 1, 3)
    expected = [[1.1 + x * x + 2 * y * y for x in steps] for y in steps]
    np.testing.assert_allclose(mesh.get_array().reshape(3, 3), expected)
    assert mesh.norm is by_gid(surfaces.figure, f"{TASK} sequential fast").norm


TASK = "20Minuten-Größe"


def test_ablations_have_means_and_intervals_of_the_runs_that_differ_in_one_setting(draw, runs):
    (picture,) = draw("ablations", *runs)
    table = picture.data[""].query("learner == 'slow'")
    assert list(dict.fromkeys(table.setting)) == ["ema_decay", "memory_size"]  # nothing varied the third
    decay = table[(table.setting == "ema_decay") & (table.value == 0.5)].iloc[0]
    values = [0.5 + 0.1 * seed + 0.05 * 0.5 for seed in (0, 1)]
    assert decay.average_accuracy == pytest.approx(np.mean(values))
    half = 12.706 * np.std(values, ddof=1) / np.sqrt(2)  # Student's t, one degree of freedom
    assert decay.average_accuracy_high - decay.average_accuracy == pytest.approx(half, rel=1e-3)
    assert [float(v) for v in decay.average_accuracy_seeds.split()] == pytest.approx(values)
    at, _ = points(picture.figure, "ema_decay average_accuracy slow")
    np.testing.assert_allclose(at[:, 1], table[table.setting == "ema_decay"].sort_values("value").average_accuracy)


def test_the_front_is_what_nothing_beats(draw, runs):
    (picture,) = draw("stability_plasticity", *runs[:3])
    corners = by_gid(picture.figure, "front").get_xydata()
    data = picture.data[""].pivot_table(index=["strategy", "path", "t"], columns="task", values="score")
    best_new, best_old = data[TASK].max(), data["mean_old"].max()
    assert corners[0].tolist() == [0, best_new] and corners[-1].tolist() == [best_old, 0]
    assert (np.diff(corners[:, 0]) >= 0).all() and (np.diff(corners[:, 1]) <= 0).all()


def test_all_of_them_by_one_command_with_the_data_beside(figure_script, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = figure_script("__main__", "--format", "svg", "--only", "ablations,simplex,plane")
    assert (code, err) == (0, "")
    stems = [Path(line).stem for line in out.splitlines()]
    assert stems[:2] == ["ablations", "plane_sequential"] and stems[-1] == "simplex_ilora"
    assert all(line.startswith("runs/figures/") for line in out.splitlines())
    for stem in stems:
        assert {f"{stem}.svg", f"{stem}.txt", f"{stem}.csv"} <= {f.name for f in (tmp_path / "runs/figures").iterdir()}
    walk = pd.read_csv(tmp_path / "runs/figures/plane_ilora_trajectory.csv")
    assert set(walk.learner) == {"fast", "slow"}
    plane = pd.read_csv(tmp_path / "runs/figures/plane_ilora.csv", keep_default_na=False)
    assert set(plane.kind) == {"plane"}


def test_what_is_missing_is_named_with_its_command_and_the_rest_is_drawn(figure_script, made_run, tmp_path):
    run = made_run(tmp_path / "run", without=["spectrum", "simplex"])
    code, out, err = figure_script(
        "__main__", "--run", run, "--format", "png", "--only", "curvature,simplex,ablations,layers"
    )
    assert code == 2 and "layers_run_fast.png" in out
    second, first, third = err.splitlines()
    assert first.startswith("error: curvature: ") and f"python analyses/curvature.py --run {run}" in first
    assert "spectrum.csv" in first and "analyses/ablations.py" in second and "ema_decay" in second
    assert f"python analyses/connectivity.py --simplex 1,2,3 --run {run}" in third
    assert {f.name for f in (tmp_path / "figures").iterdir()} >= {"layers_run_fast.png", "layers_run_fast_cka.csv"}


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (("--format", "jpg"), ("Unknown format 'jpg'", "pdf")),
        (("--format", ","), ("expected A[,B,C], got ','",)),
        (("--output-dir", __file__), ("a folder for --output-dir, got the file",)),
        (("--style", "sildes"), ("Unknown style", "Did you mean 'slides'?")),
        (("--width", "acll"), ("Unknown width", "Did you mean 'acl'?", "3,6.3")),
        (("--width", "1,2"), ("at least 2.5 inches", "got 1,2")),
        (("--format", "pdf", "--format", "png"), ("Expected --format once, got pdf and png",)),
        (("--widht", "acl"), ("--widht", "did you mean --width?")),
        (("--only", "plan"), ("Unknown figure 'plan'", "Did you mean 'plane'?")),
        (("--run", "/no/such/run"), ("/no/such/run", "manifest.json")),
        ((), ("Expected finished runs in 'runs'", "make demo")),
    ],
)
def test_bad_flags_end_in_one_line_and_write_nothing(figure_script, tmp_path, monkeypatch, arguments, pieces):
    monkeypatch.chdir(tmp_path)
    code, out, err = figure_script("__main__", *arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert all(piece in err for piece in pieces), err
    assert not any(tmp_path.iterdir())


def test_runs_that_are_left_out_are_named_with_what_measures_them(figure_script, made_run, tmp_path):
    whole = made_run(tmp_path / "runs/whole")
    bare = made_run(tmp_path / "runs/bare", "er", without=["cka"])
    code, out, err = figure_script("layers", "--run", whole, "--run", bare, "--format", "png")
    assert code == 0 and "layers_whole" in out and "layers_bare" not in out
    assert err == f"note: left out bare, without cka.csv: python analyses/similarity.py --run {bare}\n"


def test_names_that_nobody_reads_on_are_no_error(made_run, tmp_path):
    run = made_run(tmp_path / "runs/whole")
    figures = Path(__file__).parents[2] / "figures"
    command = [sys.executable, figures, "--only", "simplex,layers", "--format", "png", "--run", run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_an_unfinished_run_is_refused_by_name_and_passed_over_where_runs_are_looked_for(
    figure_script, made_run, tmp_path, monkeypatch
):
    made_run(tmp_path / "runs/half", status="running")
    code, _, err = figure_script("simplex", "--run", tmp_path / "runs/half")
    assert code == 2 and "Expected a finished run" in err and "--resume" in err
    made_run(tmp_path / "runs/whole")
    monkeypatch.chdir(tmp_path)
    code, out, err = figure_script("simplex", "--format", "png")
    assert (code, err) == (0, "") and out == "runs/figures/simplex_whole.png\n"


def test_a_style_enlarges_everything_by_one_factor_in_every_format(tmp_path):
    with on_page(STYLES["slides"]), print_style():
        figure = new_figure(double_column(), 2.0)
        figure.text(0.5, 0.5, "x")
        files = {f.suffix: f for f in save_figure(figure, tmp_path / "x", ["pdf", "png", "svg"])}
    page = STYLES["slides"]
    width = page.double * page.scale
    box = re.search(rb"/MediaBox \[ 0 0 ([0-9.]+)", files[".pdf"].read_bytes())
    assert box and float(box[1]) == pytest.approx(72 * width)
    with Image.open(files[".png"]) as image:
        assert image.width == pytest.approx(200 * width, abs=1)
    assert f'width="{72 * width:g}pt"' in files[".svg"].read_text(encoding="utf-8")
    assert double_column() == STYLES["paper"].double


@pytest.mark.parametrize("name", ["linear_connectivity", "paths_compared", "slices", "curvature", "ablations"])
@pytest.mark.parametrize("width", [(2.7, 5.5), (3.5, 7.2)])
def test_nothing_leaves_a_narrower_or_wider_page(draw, runs, name, width):
    with on_page(STYLES["paper"]._replace(single=width[0], double=width[1])):
        for picture in draw(name, *(runs if name == "ablations" else runs[2:3])):
            assert picture.figure.get_figwidth() in width
            edges = picture.figure.get_tightbbox()
            assert edges.x0 > -0.05 and edges.x1 < picture.figure.get_figwidth() + 0.05, picture.stem


THEIRS = '''
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.style import new_figure, single_column

def draw(runs):
    """A picture of nothing but the runs' names."""
    table = runs[0].accuracy_matrix
    return [Picture("theirs", new_figure(single_column(), 1.0), {"": table}, " and ".join(run.name for run in runs))]
'''


def test_a_figure_of_an_installed_package_is_drawn_with_ours(figure_script, made_run, tmp_path, install_package):
    run = made_run(tmp_path / "run")
    for name, text in (("whole", THEIRS), ("broken", "import nothing_of_this_name")):
        install_package(name, "mcanalysis.figures", {name: f"{name}_figure"}, {f"{name}_figure": text})
    code, out, err = figure_script("__main__", "--run", run, "--format", "png", "--only", "simplex,whole,broken")
    assert code == 2 and {Path(line).stem for line in out.splitlines()} == {"simplex_run", "theirs"}
    assert err.startswith("error: broken: ") and "the package broken" in err and err.count("\n") == 1
    assert (tmp_path / "figures/theirs.txt").read_text() == "run\n"
