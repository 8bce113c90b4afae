"""What an installed package gives by an entry point is found by name like a file of ours, and breaks nothing."""

import sys

import pytest

from mcanalysis import benchmarks, strategies, tasks
from mcanalysis.cli.figures import _Figures
from mcanalysis.cli.studies import STUDIES
from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.metrics import scores
from mcanalysis.paths import Linear, base, get_path, path_names
from mcanalysis.paths.path_kinds import path_kind
from mcanalysis.registry import Registry
from mcanalysis.studies.signals import base as signals

FIGURES = _Figures(["plane"], "mcanalysis.figures")
# Of each kind: its registry, a file of a stranger that defines one called `theirs`, and the object in it.
KINDS = {
    "strategies": (
        strategies._STRATEGIES,
        "from mcanalysis.strategies.strategy import Strategy, StrategyConfig\n"
        "class Theirs(Strategy):\n"
        "    '''Plain cross entropy.'''\n"
        "    name, reference, config_class = 'theirs', 'none', StrategyConfig\n"
        "    def loss(self, step):\n"
        "        return step.current_loss(step.forward())\n",
        "Theirs",
    ),
    "tasks": (
        tasks._TASKS,
        "from mcanalysis.tasks import Task\nTASK = Task('theirs', 'fr', 'rouge_l', 9)\n",
        "TASK",
    ),
    "benchmarks": (
        benchmarks._BENCHMARKS,
        "from mcanalysis.benchmarks import Benchmark\n"
        "BENCHMARK = Benchmark('theirs', ('FOMC',), lambda names, data_dir, sizes: [])\n",
        "BENCHMARK",
    ),
    "scores": (
        scores._SCORES,
        "from mcanalysis.metrics.scores import Score\n"
        "SCORE = Score('theirs', lambda output, reference, source='': float(len(output) == len(reference)), bool)\n",
        "SCORE",
    ),
    "paths": (
        base._PATHS,
        "from mcanalysis.paths import Linear\nclass Theirs(Linear):\n    name = 'theirs'\n",
        "Theirs",
    ),
    "signals": (
        signals._SIGNALS,
        "from mcanalysis.studies.signals.base import Signal\n"
        "SIGNAL = Signal('theirs', lambda move: 1.0, 'none', 'them')\n",
        "SIGNAL",
    ),
    "figures": (FIGURES, "def draw(runs):\n    return []\n", ""),
    "studies": (
        STUDIES,
        "from mcanalysis.studies.curvature import Curvature\n"
        "from mcanalysis.studies.study import Study\n"
        "class Abstract(Study):\n    pass\n"
        "class Theirs(Abstract):\n"
        "    def measure(self, run, setting):\n"
        "        yield []\n",
        "Theirs",
    ),
}
of_every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def install(install_package, monkeypatch):
    """`install(package, kind, text, name=value)` installs a package of one file, `<package>_file`."""
    FIGURES.names()
    signals.signal_names()
    for registry in (FIGURES, signals._SIGNALS):
        monkeypatch.setattr(registry, "_loaders", dict(registry._loaders))

    def call(package, kind, text, **entries):
        install_package(package, f"mcanalysis.{kind}", entries, {f"{package}_file": text})

    return call


def test_every_registry_of_what_strangers_write_is_here():
    assert {f"mcanalysis.{kind}" for kind in KINDS} == {registry.group for registry, _, _ in KINDS.values()}


@of_every_kind
@pytest.mark.parametrize("form", ["module", "object"])
def test_a_package_gives_one_more_which_is_imported_when_asked_for(install, kind, form):
    registry, text, inside = KINDS[kind]
    with pytest.raises(UnknownNameError, match=r"Unknown .* 'theirs'"):
        registry.get("theirs")
    value = "wheel_file" + (f":{inside}" if form == "object" and inside else "")
    install("wheel", kind, text, theirs=value)
    assert "theirs" in registry.names()
    with pytest.raises(UnknownNameError, match="Did you mean 'theirs'"):
        registry.get("thiers")
    assert "wheel_file" not in sys.modules
    module = registry.get("theirs") and sys.modules["wheel_file"]
    assert registry.get("theirs") is (getattr(module, inside) if inside else module)


BROKEN = {
    "import": ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    "syntax": ("class Mine(", "SyntaxError"),
    "error": ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
    "empty": ("", "at wheel_file of the package wheel, got none"),
}


@of_every_kind
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_one_is_named_with_its_package_when_asked_for_and_keeps_no_other_from_working(install, kind, fault):
    registry, text, _ = KINDS[kind]
    install("wheel", kind, BROKEN[fault][0], broken="wheel_file")
    install("whole", kind, text, theirs="whole_file")
    assert registry.get("theirs") and "broken" in registry.names()
    if kind not in ("figures", "studies"):  # ours are on the path of their script alone, and scripts
        assert registry.get(next(name for name in registry.names() if name not in ("broken", "theirs")))
    with pytest.raises(UserError) as error:
        registry.get("broken")
    sentence = str(error.value)
    assert not isinstance(error.value, UnknownNameError) and "\n" not in sentence
    assert "package wheel" in sentence and "broken" in sentence and BROKEN[fault][1] in sentence


@of_every_kind
def test_a_name_that_two_packages_give_is_refused_by_name(install, kind):
    registry, text, _ = KINDS[kind]
    install("wheel", kind, text, theirs="wheel_file")
    install("other", kind, text, theirs="other_file")
    assert registry.names().count("theirs") == 1
    with pytest.raises(UserError, match=r"one \w+ called theirs, got one each from the packages other and wheel"):
        registry.get("theirs")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("figures", "studies")])
def test_another_name_in_the_package_than_its_entry_point_says_is_refused(install, kind):
    registry, text, inside = KINDS[kind]
    install("wheel", kind, text, mine=f"wheel_file:{inside}")
    with pytest.raises(UserError, match=rf"called mine at wheel_file:{inside} of the package wheel, got none"):
        registry.get("mine")


@pytest.mark.parametrize("value", ["wheel_file:number", "wheel_file:Other", "wheel_file:Abstract", "wheel_file"])
def test_what_is_no_study_is_refused(install, value):
    text = "from mcanalysis.studies.study import Study\nnumber = 1\n"
    text += "class Other:\n    pass\nclass Abstract(Study):\n    pass\n"
    install("wheel", "studies", text, theirs=value)
    with pytest.raises(UserError, match=rf"at {value} of the package wheel, got none; let it lead to a subclass"):
        STUDIES.get("theirs")


def test_a_package_does_not_take_the_place_of_ours(install):
    text = "from mcanalysis.paths import Linear\nclass Line(Linear):\n    name = 'linear'\n"
    text += "class Theirs(Linear):\n    name = 'theirs'\n"
    install("wheel", "paths", text, linear="wheel_file:Line", theirs="wheel_file:Theirs")
    assert get_path("linear") is Linear and get_path("theirs").name == "theirs"
    assert get_path("linear") is Linear and path_names().count("linear") == 1


def test_a_path_of_a_package_is_typed_like_ours(install):
    install("wheel", "paths", KINDS["paths"][1], theirs="wheel_file")
    assert path_kind("theirs-factor").path_class is get_path("theirs")
    assert not path_kind("theirs-delta").is_fitted


def test_a_folder_called_like_a_task_of_a_package_has_its_score(install, tmp_path):
    install("wheel", "tasks", KINDS["tasks"][1], theirs="wheel_file")
    for task in ("theirs", "mine"):
        (tmp_path / "data" / task).mkdir(parents=True)
        for split in tasks.SPLITS:
            (tmp_path / "data" / task / f"{split}.json").write_text('[{"prompt": "1 + 1 =", "answer": "2"}]')
    loaded = benchmarks.load_benchmark("trace", tmp_path / "data", ["theirs", "mine"])
    assert [(data.task.score, data.task.max_new_tokens) for data in loaded] == [("rouge_l", 9), ("exact_match", 64)]


def test_a_registry_without_a_group_looks_at_no_package(install):
    install("wheel", "scores", KINDS["scores"][1], theirs="wheel_file")
    assert "theirs" not in Registry("score", "mcanalysis.metrics.scores", "SCORE").names()
