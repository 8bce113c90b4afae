"""What a page says, judged by its HTML alone, against values that the fixtures wrote by hand."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import pytest

from mcanalysis.errors import DataError, RunDirectoryError, UserError
from mcanalysis.report import embedding, find_runs, render, write_report
from mcanalysis.runs.run import load_run


class Page(HTMLParser):
    """Elements with their attributes, the text outside scripts and styles, and the scripts themselves."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.scripts, self.cells, self._inside = [], "", [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data
            if self._inside == "td":
                self.cells[-1] += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def html(run_folder):
    return render([load_run(run_folder)])


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_same_run_gives_the_same_bytes(run_folder, html):
    assert render([load_run(run_folder)]) == html


def test_shows_the_matrix_and_the_metrics(page):
    for value in ("0.90", "0.40", "0.30", "0.80", "0.60", "0.70"):
        assert value in page.cells
    assert "zeta lost most: 0.90 right after it was learned, 0.30 at the end" in page.text
    assert "0.53" in page.text and "−0.40" in page.text and "2 min 05 s" in page.text and "750 MB" in page.text


def test_charts_get_the_measured_values_of_the_test_split(page):
    first, second = page.data["runs"][0]["paths"]
    assert (first["start"], first["end"], first["new"]) == ("1-zeta", "2-中文任务", "中文任务")
    assert [kind["label"] for kind in first["kinds"]] == ["linear, factor space", "Bezier, factor space"]
    bend = second["kinds"][1]["tasks"]["zeta"]
    assert bend["t"] == [0, 0.5, 1]
    assert bend["loss"] == pytest.approx(
        [2.4, 2.4025, 2.4], abs=1e-4
    )  # 2 + 0.1·4 letters + 0.01·t(1−t); eval has 9 more
    assert first["kinds"][0]["t_star"] == 0.5


def test_planes_are_y_by_x_and_what_is_not_finite_is_a_gap(page):
    (plane,) = page.data["runs"][0]["planes"]
    assert plane["x"] == [-1, 0, 1, 2] and plane["y"] == [-1, 0, 1]
    loss = plane["tasks"]["mean"]["loss"]
    assert loss[0][0] is None
    assert loss[2][3] == 1 + 4 + 2 + 2 and loss[0][3] == 1 + 4 + 2 - 2
    assert [a["name"] for a in plane["anchors"]] == ["1-zeta fast", "2-中文任务 fast", "2-中文任务 slow"]
    assert plane["walks"][0]["step"] == [0, 5, 10]


def test_barriers_have_intervals_and_a_gain_where_there_is_one(page):
    rows = [a for tag, a in page.elements if tag == "tr" and "data-quantity" in a]
    assert len(rows) == 2 * 2 * (4 + 5)  # paths × quantities × (tasks and two means)
    assert page.text.count("+0.25 … +0.25") == 4  # one per transition and path
    assert {r["data-role"] for r in rows} == {"mean", "new", "task"}


def test_samples_show_prompt_expected_answer_and_outputs(page):
    assert "zeta ask 20" in page.text and "zeta say 20" in page.text
    assert "zeta 0-base 0" in page.text and "zeta 3-omega-fast 0" in page.text  # before and at the end
    assert "中文任务 1-zeta-fast 0" not in page.text  # neither the base, nor its own stage, nor the end
    assert (
        page.text.count("✓") == 3 * 3 + 1
    )  # each task right after it was learned, three examples, and the words on it


def test_fewer_samples_or_none(run_folder):
    one = Page(render([load_run(run_folder)], num_samples=1)).text
    assert "zeta ask 20" in one and "zeta ask 21" not in one
    assert "zeta ask 20" not in Page(render([load_run(run_folder)], num_samples=0)).text
    with pytest.raises(UserError, match="at least 0 samples"):
        render([load_run(run_folder)], num_samples=-1)


def test_outputs_are_shown_without_prompts_where_the_data_has_gone(make_run, tmp_path):
    folder = make_run(tmp_path / "run")
    (tmp_path / "run-data/zeta/test.json").write_text('[{"prompt": "other", "answer": "other"}]')
    text = Page(render([load_run(folder)])).text
    assert "Prompts and expected answers are not shown." in text
    assert "zeta 0-base 0" in text and "zeta ask" not in text


def test_what_is_not_measured_is_said_with_the_command(make_run, tmp_path):
    folder = make_run(tmp_path / "a run", measured=False)
    text = Page(render([load_run(folder)])).text
    for script in ("connectivity", "landscape", "curvature", "similarity", "attribution", "finders", "basin"):
        assert f"python analyses/{script}.py --run '{folder}'" in text  # quoted, for its blank


def test_settings_and_versions(page):
    assert "lora_rank" in page.text and "training.num_steps" in page.text and "7" in page.cells
    assert "zeta, q_proj" in page.text and "b" * 64 in page.text and "c" * 40 in page.text
    assert "2026-01-02T03:04:05Z" in page.text


def test_a_strategy_without_paths_asks_for_no_command(make_run, tmp_path):
    matrix = ((0.1, 0.1, 0.1),) * 4
    folder = make_run(tmp_path / "run", strategy="zero_shot", measured=False, matrix=matrix)
    text = Page(render([load_run(folder)])).text
    assert "leaves no LoRA minima" in text and "analyses/connectivity.py" not in text


def test_hostile_text_stays_text(hostile_folder):
    page = Page(render([load_run(hostile_folder)]))
    names = page.data["runs"][0]["paths"][0]["kinds"][0]["tasks"]
    assert [a.get("type") for tag, a in page.elements if tag == "script"] == ["application/json", None, None]
    assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "object", "embed", "form")]
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert all(a.get("href", "#")[0] == "#" or a["href"] == "data:," for _, a in page.elements)
    task = json.loads((hostile_folder / "manifest.json").read_text())["config"]["tasks"]
    assert list(names)[:2] == task[:2]
    for name in task:
        assert f"{name} ask 20" in page.text and f"{name} 0-base 0" in page.text


def test_the_policy_names_the_scripts_that_are_there_and_nothing_else_may_run(page):
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts[1:]]
    allowed = re.search(r"script-src ([^;]*);", policy)[1].split()
    assert allowed == [f"'sha256-{d}'" for d in digests]
    assert "default-src 'none'" in policy


def test_script_json_comes_back_as_it_was():
    data = ["</script><!--", "\u2028 & ü 中", "\ud800", 0.1, None]
    text = embedding.script_json(data)
    assert json.loads(text) == data
    assert not set(text) & set("<>&\u2028")
    text.encode("utf-8")


def test_the_font_comes_with_chinese_text_alone_and_holds_it(html):
    from fontTools.ttLib import TTFont

    assert embedding.font_face("Grüße, naïve") == ""
    source = re.search(r"data:font/woff;base64,([^)]*)", html)[1]
    characters = TTFont(io.BytesIO(base64.b64decode(source))).getBestCmap()
    assert {ord(c) for c in "中文任务"} <= set(characters)
    assert len(source) < 50_000


def test_numbers_in_a_column_of_text_stay_text_and_a_task_may_be_called_na(make_run, tmp_path):
    folder = make_run(tmp_path / "run", ("NA", "null", "7"))
    run = Page(render([load_run(folder)])).data["runs"][0]
    assert [p["new"] for p in run["paths"]] == ["null", "7"]
    assert "NA" in run["planes"][0]["tasks"]


def test_several_runs_are_compared_where_they_can_be(make_run, tmp_path):
    folders = [make_run(tmp_path / f"runs/{s}", strategy=s, measured=False) for s in ("er", "sequential")]
    for folder in folders:  # the same data lie in two places
        assert load_run(folder).task_names == ["zeta", "中文任务", "omega"]
    page = Page(render([load_run(f) for f in folders]))
    lines = page.data["comparison"]["lines"]
    assert [line["name"] for line in lines] == ["er, seed 0", "sequential, seed 0"]
    assert lines[0]["y"] == pytest.approx([0.9, 0.6, (0.3 + 0.6 + 0.7) / 3], abs=1e-4)
    other = make_run(tmp_path / "runs/other", tasks=("omega", "zeta", "中文任务"), measured=False)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["config"]["order"] = "shuffled1"
    (other / "manifest.json").write_text(json.dumps(manifest))
    page = Page(render([load_run(folders[0]), load_run(other)]))
    assert page.data["comparison"] == {"comparable": False}
    assert "cannot be compared" in page.text and "sequential, order shuffled1, seed 0" in page.text


@pytest.mark.parametrize(
    ("file", "content", "piece"),
    [
        ("profiles.csv", "t,loss\n0,1\n", "column"),
        ("profiles.csv", 'a,"b\n', "Expected a table"),
        ("metrics.json", "{", "Expected JSON"),
        ("metrics.json", "[]", "Expected metrics"),
        ("accuracy_matrix.csv", None, "accuracy_matrix.csv"),
        ("landscape.csv", "kind\nplane\n", "column"),
        ("../generations/0-base.json", '{"zeta": "text"}', "lists of texts"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(make_run, tmp_path, file, content, piece):
    folder = make_run(tmp_path / "run")
    damaged = folder / "tables" / file
    damaged.unlink() if content is None else damaged.write_text(content)
    output = tmp_path / "report.html"
    with pytest.raises(DataError) as caught:
        write_report([load_run(folder)], output)
    assert piece in str(caught.value) and str(folder) in str(caught.value)
    assert not output.exists()


def test_without_the_extra_one_line_says_what_to_install(run_folder, monkeypatch):
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mcanalysis\[report\]'"):
        render([load_run(run_folder)])


def test_a_page_that_is_too_large_or_has_no_place_is_not_written(run_folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="got the folder"):
        write_report([load_run(run_folder)], tmp_path)
    monkeypatch.setattr("mcanalysis.report.page.MOST_BYTES", 1_000_000)
    with pytest.raises(UserError, match=r"at most 1 MB, got 4\.\d MB"):
        write_report([load_run(run_folder)], tmp_path / "new" / "report.html")
    assert not list(tmp_path.iterdir())


def test_finds_runs_in_a_folder_and_names_the_unfinished(make_run, tmp_path):
    for name, status in (("b", "finished"), ("a", "finished"), ("c", "running")):
        make_run(tmp_path / "runs" / name, measured=False, status=status)
    found = find_runs([tmp_path / "runs"])
    assert [r.directory.name for r in found.runs] == ["a", "b"] and found.unfinished == ["c"]
    assert found.default_output == tmp_path / "runs/comparison/report.html"
    alone = find_runs([tmp_path / "runs/a"])
    assert alone.default_output == tmp_path / "runs/a/report.html"
    twice = find_runs([tmp_path / "runs/a", tmp_path / "runs"])
    assert [r.directory.name for r in twice.runs] == ["a", "b"]
    for place, piece in ((tmp_path / "runs/c", "--resume"), (tmp_path / "none", "no folder"), (tmp_path, "got none")):
        with pytest.raises(RunDirectoryError, match=piece):
            find_runs([place])
