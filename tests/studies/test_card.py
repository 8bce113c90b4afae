"""The card of two adapters: its numbers by hand, its words, its two forms, bad input, and the upload to a mock hub."""

import base64
import json
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

import mcanalysis as mc
from mcanalysis.errors import UserError
from mcanalysis.models.loading import load_base
from mcanalysis.params.lora import delta_weights
from mcanalysis.studies.card import _losses, _on_barriers, _on_gain
from mcanalysis.studies.card_page import CardCurve, Heading, as_html, as_markdown
from mcanalysis.studies.card_settings import CardPaths

STRANGE = "a|<script>alert(1)</script>*_`[x](y)"
FILES = ("adapter_config.json", "adapter_model.safetensors")
FEW_POINTS = CardPaths(num_points=3)


def point(base, seed, rank):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in base.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            out, into = module.weight.shape
            found[f"{name}.lora_A.weight"] = torch.randn(rank, into, generator=generator) / 4
            found[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator) / 4
    return found


@pytest.fixture(scope="module")
def pair(base_folder, make_examples, tmp_path_factory):
    """A folder with adapters of ranks 2 and 3, and a file of questions."""
    folder = tmp_path_factory.mktemp("pair")
    base, _ = load_base(str(base_folder))
    for name, seed, rank in (("first", 1, 2), (STRANGE.replace("/", "-"), 2, 3), ("third", 3, 2)):
        mc.save_adapter(point(base, seed, rank), folder / name, str(base_folder))
    examples = make_examples(6, "card")
    (folder / "questions.json").write_text(json.dumps([{"prompt": e.prompt, "answer": e.answer} for e in examples]))
    return folder


@pytest.fixture(scope="module")
def made(pair):
    second = pair / STRANGE.replace("/", "-")
    return mc.card(pair / "first", second, pair / "questions.json", output_dir=pair / "out", study=FEW_POINTS)


def test_each_half_has_its_examples_and_the_numbers_are_those_of_merged_weights(made, pair, base_folder, make_examples):
    profiles = made.tables["profiles"]
    base, tokenizer = load_base(str(base_folder), "float64")
    deltas = [delta_weights(end) for end in made.ends]
    with torch.no_grad():
        for name, module in base.named_modules():
            if name in deltas[0]:
                module.weight += (deltas[0][name] + deltas[1][name]).double() / 2
    losses = []
    for e in make_examples(6, "card"):
        prompt, answer = tokenizer(e.prompt)["input_ids"], [*tokenizer(e.answer)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = base(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none"))
    for split, rows in (("test", losses[::2]), ("eval", losses[1::2])):
        row = profiles[(profiles.space == "delta") & (profiles["split"] == split) & (profiles.t == 0.5)].iloc[0]
        assert row.loss == pytest.approx(float(torch.cat(rows).mean()), rel=1e-4)
    on_test = profiles[(profiles.space == "delta") & (profiles["split"] == "test")].score.to_numpy()
    barriers = made.tables["barriers"]
    gain = barriers[(barriers.space == "delta") & (barriers.quantity == "score")].iloc[0]
    assert made.t_star == gain.t_star == 0.5  # the only point between
    assert gain.interpolation_gain == pytest.approx(on_test[1] - max(on_test[0], on_test[2]))


def test_rank_distance_and_what_no_space_joins_are_on_the_page(made):
    flat = [
        torch.cat([d.flatten() for _, d in sorted(delta_weights(end).items())]).double().numpy() for end in made.ends
    ]
    distance = np.linalg.norm(flat[1] - flat[0])
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    rows = {line.split(" | ")[0].strip("| "): line for line in made.markdown.splitlines() if line.startswith("|")}
    assert f"| {distance:.3f} |" in rows["distance in ΔW"]
    assert f"| {cosine:.3f} |".replace("-", "−") in rows["cosine of the two ΔW"]
    assert rows["rank"] == "| rank | 2 | 3 |" and rows["questions"].startswith("| questions | 6 | 3 | exact\\_match |")
    assert "Not measured in factor space: " in made.markdown and "| aligned |" in made.markdown
    assert f"torch {torch.__version__}" in made.markdown and made.verdict[0].split(":")[0] in made.markdown


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = set()

    def handle_starttag(self, tag, attributes):
        self.found.add(tag)


def test_names_with_markup_are_text_in_both_forms(made, base_folder):
    for parts in (made.parts, [Heading(STRANGE), STRANGE, [[STRANGE], [STRANGE]], CardCurve(STRANGE, [0, 1], [1, 2])]):
        tags = Tags()
        tags.feed(as_html(parts, STRANGE))
        assert "h2" in tags.found and not tags.found & {"script", "a", "img", "em"}
        text = as_markdown(parts)
        assert "<" not in text and "\\*\\_\\`\\[x\\]" in text
        for line in text.splitlines():  # as many cells as bars that are not escaped
            assert not line.startswith("|") or line.replace("\\|", "").endswith("|")
    assert str(base_folder) not in made.markdown + made.html  # nothing of this machine
    assert as_markdown(["# no heading", "1. no list"]).startswith("\\# no")


def test_a_second_call_measures_nothing_and_is_the_same_page(made, pair, monkeypatch):
    from mcanalysis.evaluation.engine import Engine

    monkeypatch.setattr(Engine, "measure", lambda *_: pytest.fail("measured again"))
    again = mc.card(
        pair / "first", pair / STRANGE.replace("/", "-"), [pair / "questions.json"], output_dir=pair / "out",
        study=FEW_POINTS,
    )  # fmt: skip
    assert again.markdown == made.markdown and [f.name for f in again.save(pair / "saved")] == ["card.md", "card.html"]
    assert (pair / "saved/card.md").read_text() == made.markdown


LOSS = {"barrier": 0.2, "low": 0.1, "high": 0.3, "few": False}


def test_the_verdict_follows_from_the_bounds():
    def said(factor, delta):
        return " ".join(_on_barriers({"factor": {"A": LOSS | factor}, "delta": {"A": LOSS | delta}}, 0.05))

    low = {"barrier": 0.01, "low": 0.0, "high": 0.04}
    assert ": a barrier of 0.200 (0.100 to 0.300, A)" in said(low, {}) and "no barrier of 0.05" in said(low, {})
    assert "parametrisation" in said(low, {}) and "parametrisation" not in said({}, {})
    assert "more examples must tell" in said({}, {"low": 0.0}) and "more examples must tell" in said({}, {"few": True})
    assert "--tolerance" in said({}, {"low": 0.0, "certificate": "x"})
    of_two = {
        "A": LOSS | {"barrier": 0.04, "low": 0.0, "high": 0.045},
        "B": LOSS | {"barrier": 0.03, "low": 0.0, "high": 0.3},
    }
    assert "must tell" in next(_on_barriers({"delta": of_two}, 0.05))  # of the task that may have one
    flat = {"barrier": 0.0, "low": 0.0, "high": 0.0}
    (said_of_two,) = _on_barriers({"delta": {"A": LOSS | flat, "B": LOSS | flat | {"few": True}}}, 0.05)
    assert said_of_two.endswith("0.000 (0.000 to 0.000, B), which a few examples make.")
    assert "on these examples" in said({}, {"certificate": "x"})
    assert "not a finite number" in said({}, {"barrier": float("nan"), "low": float("nan"), "high": float("nan")})
    row = {"interpolation_gain": 0.1, "interpolation_gain_low": 0.05, "interpolation_gain_high": 0.2, "t_star": 0.4}
    assert "scores better than the better end, by +0.100 (+0.050 to +0.200)" in _on_gain(row | {"few_events": False})
    assert "not shown" in _on_gain(row | {"few_events": True})
    worse = {name: -value for name, value in row.items()} | {"t_star": 0.4, "few_events": False}
    assert "scores worse" in _on_gain(worse | {"interpolation_gain_low": -0.2, "interpolation_gain_high": -0.05})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"second": "nowhere"}, "Expected a PEFT adapter"),
        ({"data": "nothing.json"}, "Expected a JSON file"),
        ({"data": "one.json"}, "two or more examples of one"),
        ({"model": "nowhere"}, "'nowhere'"),
        ({"study": "num_points=2"}, "at least 3"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(pair, tmp_path, changed, words):
    (pair / "one.json").write_text('[{"prompt": "1", "answer": "2"}]')
    first, second, data = (pair / changed.get(k, v) for k, v in
                           (("first", "first"), ("second", "third"), ("data", "questions.json")))  # fmt: skip
    with pytest.raises(mc.UserError, match=words) as error:
        study = CardPaths(num_points=2) if "study" in changed else FEW_POINTS
        mc.card(first, second, data, model=changed.get("model"), output_dir=tmp_path / "out", study=study)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


class Hub(BaseHTTPRequestHandler):
    """Answers what an upload asks, and keeps what was sent."""

    asked, sent = [], {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else b""
        self.asked.append((self.path, self.headers.get("Authorization")))
        answer = {}
        if self.path.endswith("/repos/create"):
            self.sent["repo"] = json.loads(body)
            answer = {"url": "https://huggingface.co/me/mine"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.sent[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"success": True, "commitOid": "0" * 40, "commitUrl": "https://huggingface.co/me/mine/commit/0"}
        self.reply(answer)

    def do_GET(self):
        self.reply({})

    def reply(self, answer):
        text = json.dumps(answer).encode()
        token = self.headers.get("Authorization", "")
        is_refused = token == "Bearer hf_unknown" or (token == "Bearer hf_reader" and self.command == "POST")
        self.send_response(403 if is_refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    Hub.asked, Hub.sent = [], {}
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_point_is_uploaded_as_an_adapter_with_its_card(made, hub, tmp_path):
    import yaml
    from peft import PeftConfig

    assert mc.push_to_hub(made.point(0.5), "me/mine", "some/base", made.markdown).endswith("/me/mine")
    repo = hub.sent["repo"]
    assert repo["name"] == "mine" and (repo.get("visibility") == "private" or repo.get("private") is True)
    assert {who for _, who in hub.asked} == {"Bearer hf_token"}
    for name in FILES:
        (tmp_path / name).write_bytes(hub.sent[name])
    _, front, text = hub.sent["README.md"].decode().split("---\n", 2)
    said = yaml.safe_load(front)
    assert said["base_model"] == "some/base" and said["library_name"] == "peft" and "mcanalysis" in said["tags"]
    assert text.strip() == made.markdown.strip() and set(hub.sent) == {"repo", "README.md", *FILES}
    assert PeftConfig.from_pretrained(tmp_path).base_model_name_or_path == "some/base"
    middle, ends = delta_weights(mc.load_adapter(tmp_path).point), list(map(delta_weights, made.ends))
    for module, delta in middle.items():
        torch.testing.assert_close(delta, (ends[0][module] + ends[1][module]) / 2)


def test_without_a_token_offline_or_refused_it_is_one_line_and_nothing_is_sent(made, hub, monkeypatch):
    from huggingface_hub import constants

    def pushed(repo="me/mine"):
        with pytest.raises(mc.UserError) as error:
            mc.push_to_hub(made.point(0.0), repo, "some/base", "")
        assert "\n" not in str(error.value) and not hub.sent.keys() - {"repo"}
        return str(error.value)

    assert "OWNER/NAME" in pushed("a/b/c") and "OWNER/NAME" in pushed("mine") and not hub.asked
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "a token" in pushed() and "HF_TOKEN" in pushed() and not hub.asked
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_unknown")
    assert "Expected the hub to know whose the token is" in pushed() and not hub.asked
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_reader")
    assert "Expected to upload to 'me/mine', got: " in pushed() and hub.asked
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert (
        "Expected the hub to know whose the token is" in pushed()
    )  # before anything is measured: `card.py` asks first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in pushed()


def test_a_base_that_is_no_id_is_left_out_of_the_front_matter(base_folder):
    from mcanalysis.models.hub_upload import model_card

    assert "base_model" not in model_card(str(base_folder), "") + model_card("embedded", "")
    assert model_card("a/b: c", "x").count("---") == 2 and "base_model" not in model_card("a/b: c", "x")


def test_one_adapter_twice_is_refused(pair, tmp_path):
    with pytest.raises(mc.UserError, match="Expected two adapters, got the same one"):
        mc.card(pair / "first", pair / "first", pair / "questions.json", output_dir=tmp_path / "card")
    assert not (tmp_path / "card").exists()


def test_what_a_search_encloses_of_the_old_task_is_said_of_it(pair, make_examples):
    """A search encloses the mean over the old tasks, of which there is one here."""
    examples = make_examples(12, "more")
    (pair / "more.json").write_text(json.dumps([{"prompt": e.prompt, "answer": e.answer} for e in examples]))
    study = CardPaths(num_points=5, tolerance=0.05)
    files = [pair / "questions.json", pair / "more.json"]
    found = mc.card(pair / "first", pair / "third", files, output_dir=pair / "searched", study=study)
    barriers = found.tables["barriers"]
    old, new = (barriers[barriers.space == "delta"][lambda t, r=r: t.role == r].task.iloc[0] for r in ("old", "new"))
    of = _losses(barriers, "delta", [old, new])
    enclosed = barriers[(barriers.space == "delta") & (barriers.task == "mean_old")].iloc[0]
    assert (of[old]["low"], of[old]["high"]) == (enclosed.chord_barrier_at_least, enclosed.chord_barrier_at_most)
    assert "certificate" in of[old] and "certificate" in of[new]


def test_one_example_has_no_interval_and_a_finite_loss():
    row = {"barrier": 0.14, "low": np.nan, "high": np.nan, "few": True}
    (said,) = _on_barriers({"delta": {"a": row}}, 0.05)
    assert "more examples must tell" in said and "finite" not in said


def test_a_card_of_some_spaces_is_of_these_and_one_without_weights_is_refused(pair):
    args = (pair / "first", pair / "third", pair / "questions.json")
    found = mc.card(*args, output_dir=pair / "some", study=CardPaths(paths=("linear-delta",), num_points=3))
    assert set(found.tables["barriers"].space) == {"delta"} and "factor" not in " ".join(found.verdict).lower()
    with pytest.raises(UserError, match="a path in the space delta for a card"):
        mc.card(*args, output_dir=pair / "none", study=CardPaths(paths=("linear-factor",), num_points=3))


def test_the_page_beside_a_point_says_which_point_it_is(made):
    assert made.of_point(made.t_star).startswith("This adapter is the point t = 0.5 between the two below")
    assert "the verdict speaks of t* = 0.5" in made.of_point(0.25).splitlines()[0]
    assert made.of_point(0.25).endswith(made.markdown)
