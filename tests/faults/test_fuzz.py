"""Drawn input: each ends well, or in one clear line with exit code 2, within 20 seconds and with nothing written.

Six kinds: command lines, settings files, data files, configurations of bases, adapters, and files of runs. How many are
drawn in all: MCANALYSIS_FUZZ_EXAMPLES (36); MCANALYSIS_FUZZ_SEED draws others; what became of each goes, as JSON lines,
to MCANALYSIS_FUZZ_COUNTS. Scripts run in this process, wherever they can as a dry run, so that what is right is quick;
every tenth of them (200 at most) in one of its own, as users start them, so that what the process was before does not
count.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = int(os.environ.get("MCANALYSIS_FUZZ_EXAMPLES", "36"))
SEED = int(os.environ.get("MCANALYSIS_FUZZ_SEED", "0"))
KINDS = 6
SECONDS = 20
STARTING = 40  # seconds more for a process of its own, which imports torch on a busy machine
APART = max(10, EXAMPLES // 200)  # one of so many starts as users start it: about 200 where many are drawn

DIGITS = "9" * 5000
ODD_TEXTS = [
    *("", " ", "0", "-1", "1", "1.5", "nan", "inf", "-inf", "1e400", "1e-400", str(2**63), str(2**70), DIGITS),
    *("all", "auto", "none", "null", "true", "x" * 300, "../..", "/", "/dev/null", "/proc/self/mem", "~", "a,b", ","),
    *(
        "=",
        "a=1",
        "a=1,a=2",
        "=1",
        "seed=3",
        "memory_size=nan",
        "memory_size=-1",
        "$x^{",
        "%s{0}",
        "\u202e",
        "\x1b[31m",
    ),
    *("字", "１", "ß" * 99, "-", "--", "*", "!!python/object/apply:os.abort []", "&a [*a]", "{}", "[]", "[[[["),
    *("shuffled-1", "shuffled" + DIGITS, "linear-factor"),
]
ODD_VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 2, 2**31, 2**63, 2**70, 1e400, -1e400, float("nan"), 0.5, 1e-320, "", "x" * 300,
         "../../x", "\0", "\ud800", "a\nb", "0", "cpu", [], {}, [[]], [None], {"": None}, [1] * 100, "C:\\con"]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
)  # fmt: skip


class HangError(BaseException):
    pass


def _alarm(*_):
    raise HangError


def run_script(name, *arguments):
    """(exit code, stderr, traceback or None) of a script, run in this process."""
    sys.path.insert(0, str(REPOSITORY / "analyses"))
    spec = importlib.util.spec_from_file_location(f"fuzzed_{name}", REPOSITORY / "analyses" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    out, err, code, trace = io.StringIO(), io.StringIO(), 0, None
    argv, sys.argv = sys.argv, [f"{name}.py", *map(str, arguments)]
    before = signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec.loader.exec_module(module)
            module.run_script(module.main)
    except SystemExit as end:
        code = end.code
    except HangError:
        code, trace = "hang", traceback.format_exc()
    except BaseException:
        code, trace = "traceback", traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        sys.argv = argv
        sys.path.remove(str(REPOSITORY / "analyses"))
    return code, err.getvalue(), trace


def start_script(name, *arguments):
    """The same of a script that is started as a process; one that a signal ended has a negative code."""
    command = [sys.executable, REPOSITORY / "analyses" / f"{name}.py", *map(str, arguments)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS + STARTING)
    except subprocess.TimeoutExpired:
        return "hang", "", f"no end after {SECONDS + STARTING} s"
    return ended.returncode, ended.stderr, None


def can_be_started(arguments):
    """Whether the system takes them: no NUL, nothing that is no Unicode, and not too long."""
    texts = [str(a) for a in arguments]
    return not any("\0" in t or len(t) > 100_000 or t != t.encode("utf-8", "ignore").decode() for t in texts)


def judge(code, err, trace, written):
    """The kind of what is wrong and what it is; (None, "") where nothing is."""
    if code == "hang":
        return "hang", trace[-1500:]
    if trace is not None or "Traceback" in err:
        return "unclear", (trace or err)[-1500:]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    if code not in (0, 2) or (code == 2 and len(errors) != 1):
        return "unclear", f"exit code {code}: {err[-500:]}"
    if code == 2 and written:
        return "half-written", ", ".join(written)
    return None, ""


@pytest.fixture(scope="session")
def tried():
    """tried(kind, folder, script, *arguments) runs a script in a folder, asserts that it ended well, and counts it."""
    counts = os.environ.get("MCANALYSIS_FUZZ_COUNTS")
    number = itertools.count(1)

    def call(kind, folder, name, *arguments):
        before, there = {f for f in folder.rglob("*")}, Path.cwd()
        os.chdir(folder)
        apart = next(number) % APART == 0 and can_be_started(arguments)
        try:
            result = (start_script if apart else run_script)(name, *arguments)
        finally:
            os.chdir(there)
        written = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f not in before)
        wrong, what = judge(*result, written)
        for file in sorted(set(folder.rglob("*")) - before, reverse=True):
            shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
        if counts:
            with Path(counts).open("a") as stream:
                case = ascii([kind, name, *(str(a)[:60] for a in arguments)]) if wrong else kind
                stream.write(json.dumps({"case": case, "wrong": wrong, "process": apart}) + "\n")
        assert wrong is None, f"{name} {arguments}: {what}"
        return result[0]

    return call


def drawn(share=1.0):
    """How each kind is drawn."""
    how = settings(
        max_examples=max(1, round(EXAMPLES * share / KINDS)), deadline=None, derandomize=False, database=None,
        report_multiple_bugs=True, suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    return lambda test: seed(SEED)(how(test))


ROWS = [{"prompt": f"Text {i}\nLabel:", "answer": "AB"[i % 2]} for i in range(4)]


def write_data(folder, names=("B", "C")):
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split in ("train", "eval", "test"):
            (folder / name / f"{split}.json").write_text(json.dumps(ROWS))
    return folder


@pytest.fixture(scope="module")
def place(base_folder, tmp_path_factory):
    """A folder with a base, data, and a finished run of two tasks; each case puts back what it changed."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(base_folder, folder / "base")
    write_data(folder / "data")
    there = Path.cwd()
    os.chdir(folder)
    try:
        code, err, trace = run_script(
            "train", "--model", "./base", *TRACE, "--strategy", "sequential", "--steps", 1, "--batch-size", 2,
            "--lora-rank", 2, "--save-trajectory", 0, "--max-length", 64, "--output-dir", "run",
        )  # fmt: skip
    finally:
        os.chdir(there)
    assert code == 0, (err, trace)
    return folder


TRACE = ("--benchmark", "trace", "--data-dir", "data")
DRY = ("--model", "./base", *TRACE, "--strategy", "er", "--max-length", 64, "--dry-run")
FLAGS = {}


def flags_of(script):
    """The flags of a script, by its own `--help`."""
    if script not in FLAGS:
        arguments = [sys.executable, str(REPOSITORY / "analyses" / f"{script}.py"), "--help"]
        text = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
        left_out = {"--help", "--scheduler", "--insecure", "--dry-run", "--no-dry-run", "--torch-compile", "--model"}
        FLAGS[script] = sorted(set(re.findall(r"--[a-z][a-z-]+", text)) - left_out)
    return FLAGS[script]


@drawn()
@given(st.data())
def test_command_lines(tried, place, data):
    script = data.draw(st.sampled_from(("train", "connectivity", "landscape", "curvature", "report", "early", "tune")))
    number = data.draw(st.integers(1, 3))
    texts = st.sampled_from(ODD_TEXTS) | st.text(st.characters(exclude_characters="\0"), max_size=12)
    flags = []
    for _ in range(number):
        flags.append(data.draw(st.sampled_from(flags_of(script))))
        if data.draw(st.integers(0, 5)):
            flags[-1] += "=" + data.draw(texts)
    if script in ("train", "connectivity"):
        flags += DRY
    elif script == "report":
        flags += ["no-such-run"]
    else:  # what would compute is to fail at the run at the latest
        flags += ["--run", "no-such-run"]
    tried("command lines", place, script, *flags)


@drawn()
@given(st.data())
def test_settings_files(tried, place, data):
    names = st.sampled_from([flag[2:] for flag in flags_of("train")]) | st.text(max_size=6)
    values = ODD_VALUES | st.sampled_from(ODD_TEXTS)
    lines = data.draw(st.dictionaries(names, values, min_size=1, max_size=3))
    text = "\n".join(f"{name}: {json.dumps(value)}" for name, value in lines.items()).encode("utf-8", "replace")
    file = place / "fuzzed.yaml"
    file.write_bytes(damaged(data, text) if data.draw(st.booleans()) else text)
    tried("settings files", place, "train", "--config", "fuzzed.yaml", *DRY)
    file.unlink()


def damaged(data, content):
    """Bytes that were cut, of which one was changed, with others put in, or in another encoding."""
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    how = data.draw(st.sampled_from(("cut", "byte", "insert", "utf-16", "deep", "none")))
    if how == "cut":
        return content[:at]
    if how == "byte":
        return content[:at] + bytes([data.draw(st.integers(0, 255))]) + content[at + 1 :]
    if how == "insert":
        return content[:at] + data.draw(st.binary(max_size=6)) + content[at:]
    if how == "utf-16":
        return content.decode("utf-8", "replace").encode("utf-16", "replace")
    return b"[" * 5000 if how == "deep" else b""


def changed(data, value):
    """JSON of which one entry, drawn from all, is another, gone or there twice."""
    value = json.loads(json.dumps(value))
    owner, key = None, None
    inner = value
    for _ in range(data.draw(st.integers(1, 4))):
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner))) if isinstance(inner, list) else []
        if not keys:
            break
        owner, key = inner, data.draw(st.sampled_from(keys))
        inner = inner[key]
    if owner is None:
        return data.draw(ODD_VALUES)
    if data.draw(st.integers(0, 3)) == 0:
        del owner[key]
    else:
        owner[key] = data.draw(ODD_VALUES)
    return value


@contextlib.contextmanager
def fuzzed(data, file):
    """A JSON file as it was, with an entry changed or bytes damaged; put back at the end."""
    before = file.read_bytes()
    try:
        if file.suffix == ".json" and data.draw(st.booleans()):
            file.write_text(json.dumps(changed(data, json.loads(before))), encoding="utf-8", errors="surrogatepass")
        else:
            file.write_bytes(damaged(data, before))
        yield
    finally:
        file.write_bytes(before)


@drawn()
@given(st.data())
def test_data_files(tried, place, data):
    with fuzzed(data, place / "data" / "B" / f"{data.draw(st.sampled_from(('train', 'eval', 'test')))}.json"):
        tried("data files", place, "train", *DRY)


@drawn()
@given(st.data())
def test_configurations_of_bases(tried, place, data):
    files = sorted(file for file in (place / "base").iterdir() if file.suffix == ".json")
    with fuzzed(data, data.draw(st.sampled_from(files))):
        tried("bases", place, "train", *DRY)


@drawn()
@given(st.data())
def test_adapters(tried, place, data):
    first, second = sorted((place / "run" / "minima").glob("*/fast"))
    if not (place / "adapter").exists():
        shutil.copytree(first, place / "adapter")
    with fuzzed(data, place / "adapter" / data.draw(st.sampled_from(sorted(f.name for f in first.iterdir())))):
        pair = f"adapter,{second.relative_to(place)}"
        flags = ("--paths", "linear-factor", "--num-points", 2, "--dry-run", "--max-length", 64)
        tried(
            "adapters",
            place,
            "connectivity",
            "--model",
            "./base",
            "--minima",
            pair,
            "--data",
            "data/B/test.json",
            *flags,
        )


@drawn()
@given(st.data())
def test_files_of_runs(tried, place, data):
    run = place / "run"
    files = [run / "manifest.json", *sorted((run / "tables").iterdir()), *sorted((run / "losses").iterdir())]
    with fuzzed(data, data.draw(st.sampled_from(files))):
        if data.draw(st.booleans()):
            flags = ("--paths", "linear-factor", "--num-points", 2, "--dry-run")
            tried("files of runs", place, "connectivity", "--run", "run", *flags)
        else:
            tried("files of runs", place, "report", "run", "--output", "page.html")
