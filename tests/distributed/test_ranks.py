"""Jobs on the ranks of a launch: shared out as each is free, errors that come through, and a rank that is lost.

The jobs of the first tests share one launch, since starting interpreters takes longer than the jobs.
"""

import json
import socket
from pathlib import Path

import pytest

from mcanalysis.errors import UserError
from mcanalysis.progress import silent
from mcanalysis.studies.jobs import Job, num_ranks, run_jobs, use_pool
from mcanalysis.studies.launch import Launch

REPOSITORY = Path(__file__).parents[2]
TOLD = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}

JOBS = """
import json, os, sys, time
from mcanalysis.errors import UnknownNameError
from mcanalysis.studies.jobs import Job, num_ranks, run_jobs
from mcanalysis.studies.launch import Launch
from mcanalysis.studies.ranks import Ranks, serve

mine = os.environ.get("RANK")  # read before the launch is left

def note(x, progress):
    bar = progress(total=1, desc=f"note {x}")
    bar.update(1)
    bar.close()
    return x * x

def wait(progress):
    time.sleep(0.3 if mine == "1" else 0.02)
    return mine

def environment(progress):
    time.sleep(0.2)
    return [mine, *(os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))]

def fail(progress):
    raise UnknownNameError("task", "FOMCC", ["FOMC"])

def die(progress):
    if mine == "1":
        os.kill(os.getpid(), 9)
    time.sleep(0.5)

bars = {}
class Bar:
    def __init__(self, *, total, desc):
        self.desc = desc
        bars.setdefault(desc, 0)
    def update(self, n=1):
        bars[self.desc] += n
    def close(self):
        pass

def main():
    found = {"ranks": num_ranks(), "results": {}}
    def follow(job, result):
        found["results"][job.arguments[0]] = result
        return [Job(note, (job.arguments[0] * 10,))] if job.arguments[0] < 10 else []
    run_jobs([Job(note, (x,)) for x in (1, 2, 3)], follow, 1, Bar, total=6)
    found["bars"] = bars
    by_rank = found["waited"] = []
    run_jobs([Job(wait, ())] * 30, lambda job, result: by_rank.append(result) or [], 1, Bar)
    seen = found["environments"] = []
    run_jobs([Job(environment, ())] * (2 * num_ranks()), lambda job, result: seen.append(result) or [], 1, Bar)
    try:
        run_jobs([Job(fail, ())], lambda job, result: [], 1, Bar)
    except Exception as error:
        found["error"] = [type(error).__name__, str(error)]
    with open(sys.argv[1], "w") as stream:
        json.dump(found, stream)
    if len(sys.argv) > 2:
        stored = []
        try:
            run_jobs([Job(die, ())] * 4, lambda job, result: stored.append(result) or [], 1, Bar)
        except ValueError as error:
            print(f"rank 0: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2)

if __name__ == "__main__":
    of_this = Launch.of_environment()
    if of_this.rank:
        serve(of_this)
    else:
        with Ranks(of_this):
            main()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("script") / "jobs.py"
    file.write_text(JOBS, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def with_two(launch, script):
    """What two ranks found, and how it ended when one of them was killed."""
    code, _, err = launch(2, script, script.with_name("found"), "die")
    return json.loads(script.with_name("found").read_text()), code, err


def check_results(found, number):
    assert found["ranks"] == number
    assert found["results"] == {str(x): x * x for x in (1, 2, 3, 10, 20, 30)}
    assert found["bars"] == {"jobs": 6} | {f"note {x}": 1 for x in (1, 2, 3, 10, 20, 30)}
    assert found["error"] == ["UserError", "Unknown task 'FOMCC'. Did you mean 'FOMC'? Expected one of: FOMC."]
    assert len(found["waited"]) == 30


def test_results_follow_ups_bars_and_errors_come_through(with_two):
    check_results(with_two[0], 2)


def test_a_slow_rank_does_less(with_two):
    waited = with_two[0]["waited"]
    assert 1 <= waited.count("1") < 0.25 * len(waited)  # 15 times as slow; a fixed split would give it half


def test_every_rank_works_and_what_it_trains_takes_no_part_in_the_launch(with_two):
    assert sorted({tuple(e) for e in with_two[0]["environments"]}) == [(r, None, None, None) for r in "01"]


def test_a_lost_rank_ends_the_run_with_one_line_that_says_which(with_two):
    _, code, err = with_two
    assert code != 0
    lines = [line for line in err.splitlines() if line.startswith("rank 0: ")]
    assert len(lines) == 1
    assert "Expected 2 processes to live, got process 1 (pid " in lines[0]
    assert "start the same command again" in lines[0]


@pytest.mark.slow
def test_four_ranks(launch, script, tmp_path):
    code, _, err = launch(4, script, tmp_path / "found")
    assert code == 0, err[-3000:]
    found = json.loads((tmp_path / "found").read_text())
    check_results(found, 4)
    assert set(found["waited"]) == set("0123")


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        ("0", "Expected 2 processes within 3 s, as WORLD_SIZE says"),
        pytest.param("1", "Expected 2 processes within 3 s", marks=pytest.mark.slow),  # says it 10 s later
    ],
)
def test_a_world_larger_than_what_was_started_is_told_in_time(python, rank, expected):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    told = {**TOLD, "RANK": rank, "MASTER_PORT": port, "MCANALYSIS_JOIN_SECONDS": "3"}
    code, out, err = python(REPOSITORY / "analyses" / "connectivity.py", "--run", "none", **told)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if "error: " in line]
    assert len(lines) == 1 and expected in lines[0]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("change", "piece"),
    [
        ({"RANK": ""}, "got no RANK; start the script with torchrun"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "got no MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "two"}, "whole number in WORLD_SIZE, got 'two'"),
        ({"RANK": "2"}, "RANK from 0 to 1, got 2 in a launch of 2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "got a launch with FSDP"),
        ({"MCANALYSIS_JOIN_SECONDS": "soon"}, "seconds in MCANALYSIS_JOIN_SECONDS, got 'soon'"),
    ],
)
def test_a_launch_that_makes_no_sense_is_refused(change, piece):
    with pytest.raises(UserError, match=piece):
        Launch.of_environment({**TOLD, **change})


def test_a_pool_takes_the_jobs_instead_of_workers():
    class Pool:
        count = 3

        def run(self, pending, follow, progress, overall):
            taken.extend(pending)

    taken = []
    use_pool(Pool())
    try:
        assert num_ranks() == 3
        run_jobs([Job(print, ())], lambda job, result: [], 1, silent)
    finally:
        use_pool(None)
    assert taken == [Job(print, ())] and num_ranks() == 1
