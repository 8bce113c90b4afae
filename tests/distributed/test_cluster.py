"""Pieces on a dask cluster: what workers say comes through, and what becomes of pieces whose workers die or refuse."""

import contextlib
import json
import os
import random
import signal
import socket
import sys
import threading
import time
import types
from pathlib import Path

import cluster_pieces as pieces
import pytest

from mcanalysis.errors import UserError, WorkerLostError
from mcanalysis.progress import silent
from mcanalysis.studies.engine import Engine, Piece
from mcanalysis.studies.executors.cluster import Cluster, check_secure, scheduler_address
from mcanalysis.training.stopping import Stopped


@pytest.fixture(scope="module")
def machines(start_cluster):
    """Two workers, that tests may kill: their nannies start others."""
    with start_cluster(2) as cluster:
        yield cluster


@pytest.fixture
def connect(machines):
    """connect(**Cluster) -> a Cluster with both workers, closed at the end; what it said is in its list `said`."""
    opened = []

    def make(progress=silent, **settings):
        said = []
        cluster = Cluster(machines.scheduler_address, progress, say=said.append, **settings)
        cluster.said = said
        opened.append(cluster)
        wait_for(cluster, 2)
        return cluster

    yield make
    for cluster in opened:
        cluster.close()


def wait_for(cluster, count):
    end = time.monotonic() + 30
    while cluster.count != count:
        assert time.monotonic() < end, f"{cluster.count} workers instead of {count}"
        time.sleep(0.1)


def wanting(*wanted):
    return (yield list(wanted))


def process_of(child):
    """The parent of a process."""
    return int(Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_results_and_bars_come_from_both_workers(connect, until, seen):
    cluster = connect(seen)
    (found,) = Engine(cluster).run([wanting(*(Piece(str(x), pieces.square, (x,)) for x in range(40)))])
    assert [square for square, _ in found] == [x * x for x in range(40)]
    assert len({process for _, process in found}) == 2
    until(lambda: len(seen.closed) == 40, "all bars")
    assert seen.bars == {f"square {x}": 2 for x in range(40)}


def test_what_workers_warn_of_is_said_once_and_here(connect, until, caplog):
    cluster = connect()
    Engine(cluster).run([wanting(*(Piece(f"worry {x}", pieces.worry, (x,)) for x in range(4)))])

    def said():
        return sorted(record.getMessage() for record in caplog.records if record.name == "mcanalysis")

    until(lambda: len(said()) == 5, "all warnings")
    assert said() == ["a run on the cluster is odd", *(f"piece {x} on it, too" for x in range(4))]


def test_an_error_is_raised_in_its_own_words_and_sets_no_worker_aside_if_two_say_it(connect):
    cluster = connect()
    with pytest.raises(OSError, match=r"^no such device"):
        cluster.submit(Piece("k", pieces.fail, ("system",))).result(60)
    with pytest.raises(UserError, match=r"^There is no task FOMCC"):
        cluster.submit(Piece("k", pieces.fail, ("user",))).result(60)
    assert cluster.count == 2
    assert not [line for line in cluster.said if "aside" in line]


def test_a_worker_that_lacks_something_is_set_aside_and_the_other_goes_on(connect, tmp_path):
    cluster = connect()
    computed = cluster.submit(Piece("k", pieces.need_data, (tmp_path,))).result(60)
    assert str(computed) != str((tmp_path / "first").readlink())
    assert cluster.count == 1
    assert [line.split(" is set aside: ")[1] for line in cluster.said if "aside" in line] == ["There is no data here."]
    assert {cluster.submit(Piece("k", pieces.slow, (0,))).result(60) for _ in range(3)} == {computed}


def test_a_killed_worker_is_replaced_and_its_piece_computed_elsewhere(connect, tmp_path):
    cluster = connect()
    assert cluster.submit(Piece("k", pieces.die, (tmp_path, 1))).result(60) == "alive"
    assert len({f.suffix for f in tmp_path.iterdir()}) == 2


def test_a_piece_that_kills_three_ends_its_study_with_its_name_and_no_other(connect, tmp_path):
    done = []

    def other():
        for x in range(10):
            done.extend((yield [Piece(f"slow {x}", pieces.square, (x,))]))

    killer = Piece("k", pieces.die, (tmp_path, 9), name="curve 1-2")
    with pytest.raises(WorkerLostError, match=r"^curve 1-2 was given up: 3 workers that computed it died"):
        Engine(connect()).run([wanting(killer), other()])
    assert len(list(tmp_path.iterdir())) == 3
    assert [square for square, _ in done] == [x * x for x in range(10)]


def test_workers_killed_at_any_moment_cost_what_they_computed_and_nothing_else(connect, machines, tmp_path):
    def kill(moments):
        rng = random.Random(moments)
        for _ in range(moments):
            time.sleep(rng.uniform(0.2, 1.5))
            victim = rng.choice([nanny.pid for nanny in machines.workers.values() if nanny.pid])
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)

    cluster = connect()
    killer = threading.Thread(target=kill, args=(4,))
    killer.start()
    (found,) = Engine(cluster).run([wanting(*(Piece(str(x), pieces.note, (tmp_path, x)) for x in range(60)))])
    killer.join()
    assert found == list(range(60))
    assert 60 <= len(list(tmp_path.iterdir())) <= 64


def test_a_piece_that_hangs_hits_the_time_limit(connect):
    cluster = connect(piece_seconds=0.3)
    with pytest.raises(WorkerLostError, match=r"^hangs was given up: .* \(--time-limit\)"):
        cluster.submit(Piece("k", pieces.slow, (600,), name="hangs")).result(120)


def test_training_goes_on_elsewhere_when_its_worker_dies_and_saves_when_the_study_stops(connect, tmp_path, until):
    cluster = connect(piece_seconds=0.3)  # no limit for what trains
    future = cluster.submit(Piece("k", pieces.train, (tmp_path, 2000), trains=True))
    until(lambda: list(tmp_path.glob("pid.*")), "the training")
    first = int(next(tmp_path.glob("pid.*")).suffix[1:])
    os.kill(process_of(first), signal.SIGKILL)
    until(lambda: (tmp_path / f"saved.{first}").exists(), "the first process's end")
    until(lambda: len(list(tmp_path.glob("pid.*"))) == 2, "the training elsewhere")
    cluster.stop()
    with pytest.raises(Stopped):
        future.result(60)
    assert len(list(tmp_path.glob("saved.*"))) == 2
    with pytest.raises(Stopped):
        cluster.submit(Piece("k", pieces.slow, (0,))).result(60)


def test_training_ends_when_the_study_is_killed(machines, tmp_path, until):
    """Its client is closed without a word, as a killed process does."""
    cluster = Cluster(machines.scheduler_address, say=lambda line: None)
    cluster.submit(Piece("k", pieces.train, (tmp_path, 2000), trains=True))
    until(lambda: list(tmp_path.glob("pid.*")), "the training")
    cluster.close()
    until(lambda: list(tmp_path.glob("saved.*")), "its end")


def test_workers_join_and_leave_and_are_waited_for(start_cluster):
    said = []
    with start_cluster(0) as machines, Cluster(machines.scheduler_address, say=said.append) as cluster:
        assert cluster.count == 0
        future = cluster.submit(Piece("k", pieces.square, (3,)))
        end = time.monotonic() + 30
        while not [line for line in said if line.startswith("no workers at tcp://127.0.0.1:")]:
            assert time.monotonic() < end
            time.sleep(0.05)
        machines.scale(1)
        assert future.result(60)[0] == 9
        wait_for(cluster, 1)
        machines.scale(2)
        wait_for(cluster, 2)
        machines.scale(1)
        wait_for(cluster, 1)
        assert cluster.submit(Piece("k", pieces.square, (4,))).result(60)[0] == 16
        assert sum("no workers" in line for line in said) == 1


def test_a_scheduler_that_is_lost_is_said(start_cluster, monkeypatch):
    monkeypatch.setattr("mcanalysis.studies.executors.cluster._ANSWER_SECONDS", 1.0)
    machines = start_cluster(1)
    with Cluster(machines.scheduler_address, say=lambda line: None) as cluster:
        future = cluster.submit(Piece("k", pieces.slow, (600,)))
        time.sleep(0.5)
        machines.close()
        with pytest.raises(UserError, match="does not answer any more"):
            future.result(60)
        assert cluster.count == 1
        with pytest.raises(UserError, match="does not answer any more"):
            cluster.submit(Piece("k", pieces.slow, (0,))).result(60)


@pytest.mark.parametrize("is_open", [False, True], ids=["closed port", "silent port"])
def test_a_scheduler_that_does_not_answer(is_open, monkeypatch):
    monkeypatch.setattr("mcanalysis.studies.executors.cluster._ANSWER_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not is_open:
            server.close()
        started = time.monotonic()
        with pytest.raises(UserError, match=rf"^No scheduler answers at tcp://127.0.0.1:{port} within 1 s: "):
            Cluster(f"127.0.0.1:{port}")
        assert time.monotonic() - started < 10


def test_another_version_is_refused(machines, monkeypatch):
    monkeypatch.setattr("distributed.__version__", "2020.1.0")
    with pytest.raises(UserError, match=r"^The scheduler at .* has distributed 2\d.* for 2020.1.0 here: "):
        Cluster(machines.scheduler_address)


def test_workers_with_another_version_of_the_package_are_named(connect, monkeypatch):
    monkeypatch.setattr("mcanalysis.__version__", "0.0.1")
    cluster = connect()
    with pytest.raises(UserError, match=r"^This worker has mcanalysis .* for 0.0.1: install the same versions"):
        cluster.submit(Piece("k", pieces.square, (3,))).result(60)


def test_a_function_that_workers_do_not_have_is_named(connect, monkeypatch):
    def absent(progress):
        return None

    module = types.ModuleType("not_there")
    module.absent, absent.__module__, absent.__qualname__ = absent, "not_there", "absent"
    monkeypatch.setitem(sys.modules, "not_there", module)
    with pytest.raises(UserError, match=r"^This worker lacks code: No module named 'not_there'\."):
        connect().submit(Piece("k", absent)).result(60)


@pytest.mark.parametrize(
    ("address", "is_secure"),
    [
        ("tcp://localhost:8786", True),
        ("tcp://127.0.1.1:8786", True),
        ("tcp://[::1]:8786", True),
        ("inproc://1/2/3", True),
        ("tls://10.0.0.7:8786", True),
        ("tcp://10.0.0.7:8786", False),
        ("tcp://node7:8786", False),
        ("tcp://localhost.example.org:8786", False),
    ],
)
def test_off_this_machine_pieces_are_encrypted_or_someone_says_otherwise(address, is_secure):
    if is_secure:
        check_secure(address, False)
    else:
        with pytest.raises(UserError, match=r"^tcp://.* is not encrypted and not on this machine"):
            check_secure(address, False)
        check_secure(address, True)


def test_a_scheduler_file_gives_the_address(tmp_path):
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"type": "Scheduler", "address": "tcp://10.0.0.7:8786"}))
    assert scheduler_address(str(file)) == "tcp://10.0.0.7:8786"
    file.write_text("[]")
    with pytest.raises(UserError, match="names no address"):
        scheduler_address(str(file))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        scheduler_address(str(tmp_path / "another.json"))
    for wrong in ("nowhere", "tcp://host", "tcp://host:port"):
        with pytest.raises(UserError, match="needs an address"):
            scheduler_address(wrong)
