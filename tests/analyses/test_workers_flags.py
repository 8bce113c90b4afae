"""The flags that say where pieces are computed."""

import pytest

from mcanalysis.cli.flags import Parser
from mcanalysis.cli.running import run_script
from mcanalysis.cli.workers import add_workers_flags, workers
from mcanalysis.errors import UserError
from mcanalysis.studies.engine import Here
from mcanalysis.studies.executors.processes import Processes, num_cores


@pytest.fixture
def flags(base_folder):
    def parse(*given):
        parser = Parser(None)
        parser.add_argument("--model", default=str(base_folder))
        parser.add_argument("--device", default="cpu")
        add_workers_flags(parser)
        return parser.parse_args(list(given))

    return parse


@pytest.mark.parametrize(("given", "number"), [(("--workers", "1"), 1), (("--workers", "3"), 3), ((), num_cores())])
def test_processes_of_this_machine(flags, given, number):
    with workers(flags(*given)) as them:
        assert them.count == number
        assert isinstance(them, Here if number == 1 else Processes)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--time-limit", "-1"), "--time-limit is a number of seconds"),
        (("--insecure",), "--insecure is about a --scheduler"),
        (("--workers", "2", "--scheduler", "127.0.0.1:1"), "leave one out"),
        (("--workers", "2", "--device", "cuda:1"), "CUDA_VISIBLE_DEVICES"),
        (("--scheduler", "tcp://10.0.0.7:8786"), "tls://, or --insecure"),
        (("--scheduler", "absent.json"), "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, given, words):
    with pytest.raises(UserError, match=words), workers(flags(*given)):
        pass


def test_no_workers(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        flags("--workers", "0")
    assert "--workers: expected a whole number from 1 to 1,024, got '0'" in capsys.readouterr().err


def test_a_study_is_not_started_by_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as end:
        run_script(lambda: None)
    assert end.value.code == 2
    assert "--workers or --scheduler instead" in capsys.readouterr().err
