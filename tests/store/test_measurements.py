import math
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest

from mcanalysis.errors import UserError
from mcanalysis.store import Measurement, MeasurementKey, MeasurementStore


def measurement(seed: int = 0, size: int = 4, **changes) -> Measurement:
    rng = np.random.default_rng(seed)
    targets = rng.integers(1, 9, size)
    nll = rng.normal(size=size)
    fields = {
        "loss": nll.sum() / targets.sum(),
        "score": 0.25,
        "num_examples": size,
        "num_targets": int(targets.sum()),
        "nll": nll,
        "targets": targets,
        "scores": rng.random(size),
    }
    return Measurement(**{**fields, **changes})


def key(i: int = 0) -> MeasurementKey:
    return MeasurementKey(f"point{i}", "C-STANCE", "test", "settings")


def test_comes_back_bit_for_bit(tmp_path):
    stored = measurement(loss=1 / 3, score=-0.0)
    with MeasurementStore(tmp_path / "m.sqlite") as store:
        store.put(key(), stored)
    with MeasurementStore(tmp_path / "m.sqlite") as store:
        back = store.get(key())
    assert back == stored
    assert back is not None and back.loss.hex() == (1 / 3).hex()
    assert (back.nll.dtype, back.targets.dtype, back.scores.dtype) == (np.float64, np.int32, np.float32)
    assert back.nll.tobytes() == stored.nll.tobytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_come_back(tmp_path, value):
    stored = measurement(loss=value, score=value, nll=np.array([value, 1.0, 2.0, 3.0]))
    with MeasurementStore(tmp_path / "m.sqlite") as store:
        store.put(key(), stored)
        back = store.get(key())
    assert back == stored
    assert back is not None and repr(back.loss) == repr(value) and repr(back.nll[0]) == repr(np.float64(value))


def test_each_part_of_the_key_counts():
    with MeasurementStore(":memory:") as store:
        store.put(key(), measurement())
        for part in range(4):
            other = MeasurementKey(*("other" if i == part else text for i, text in enumerate(key())))
            assert store.get(other) is None


def test_storing_twice_keeps_one_row_with_the_later_value():
    with MeasurementStore(":memory:") as store:
        store.put(key(), measurement(0))
        store.put(key(), measurement(1))
        assert len(store) == 1
        assert store.get(key()) == measurement(1)


def test_missing_keeps_the_order_and_names_each_key_once():
    with MeasurementStore(":memory:") as store:
        store.put_many([(key(1), measurement()), (key(3), measurement())])
        assert store.missing([key(4), key(3), key(0), key(4), key(1)]) == [key(4), key(0)]
        assert store.missing([]) == []


def test_a_batch_that_fails_leaves_nothing(tmp_path):
    with MeasurementStore(tmp_path / "m.sqlite") as store:
        bad = (None, "C-STANCE", "test", "settings")
        with pytest.raises(sqlite3.IntegrityError):
            store.put_many([(key(), measurement()), (bad, measurement())])  # type: ignore[list-item]
        assert len(store) == 0
        store.put(key(), measurement())
        assert len(store) == 1


def test_arrays_may_be_left_out_but_not_have_another_length():
    bare = measurement(nll=np.array([]), targets=np.array([]), scores=np.array([]))
    with MeasurementStore(":memory:") as store:
        store.put(key(), bare)
        assert store.get(key()) == bare
    with pytest.raises(ValueError, match=r"Expected scores of shape \(4,\).*got \(3,\)"):
        measurement(scores=np.zeros(3))


def test_a_measurement_does_not_change_with_the_callers_array():
    nll = np.ones(4)
    stored = measurement(nll=nll)
    nll[:] = 7
    assert stored.nll.tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        stored.nll[0] = 2


def test_equality_sees_every_field():
    assert measurement() == measurement()
    assert measurement() != measurement(loss=9.0)
    assert measurement() != measurement(scores=np.zeros(4))
    assert measurement(loss=math.nan) == measurement(loss=math.nan)


def test_write_ahead_mode_is_on(tmp_path):
    with MeasurementStore(tmp_path / "m.sqlite"), closing(sqlite3.connect(tmp_path / "m.sqlite")) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_not_sqlite_is_refused_in_one_line(tmp_path):
    path = tmp_path / "m.sqlite"
    path.write_text("t,loss\n" * 400)
    with pytest.raises(UserError) as caught:
        MeasurementStore(path)
    assert str(caught.value) == (
        f"Expected a measurement store (SQLite) at {path}, got: file is not a database; "
        "move the file away or choose another run directory."
    )
    assert path.read_text() == "t,loss\n" * 400


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "m.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"got a SQLite file of another program; move it away"):
        MeasurementStore(path)
    assert path.read_bytes() == before


def test_a_store_of_another_version_is_refused(tmp_path):
    path = tmp_path / "m.sqlite"
    MeasurementStore(path).close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(UserError, match=r"Expected a measurement store of version 2 or before at .*, got version 99"):
        MeasurementStore(path)


def test_a_folder_that_does_not_exist_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"Cannot use the measurement store .*absent.*: unable to open"):
        MeasurementStore(tmp_path / "absent" / "m.sqlite")


WRITER = """
import sys
import numpy as np
from mcanalysis.store import Measurement, MeasurementKey, MeasurementStore

path, name, batch, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store = MeasurementStore(path)
size = 2000
for i in range(count):
    store.put_many(
        (
            MeasurementKey(f"{name}-{i}", "FOMC", "test", str(j)),
            Measurement(i, j, size, size, np.full(size, i), np.full(size, j), np.full(size, i)),
        )
        for j in range(batch)
    )
    print(i, flush=True)
"""


def write_in_another_process(path, name="w", batch=5, count=10**9) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(batch), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02, 0.05])
def test_a_killed_writer_leaves_whole_batches_and_everything_it_had_reported(tmp_path, delay):
    path = tmp_path / "m.sqlite"
    writer = write_in_another_process(path)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(delay)
    writer.send_signal(signal.SIGKILL)
    rest = writer.communicate()[0]
    assert writer.returncode == -signal.SIGKILL
    reported = int(rest.split()[-1]) + 1 if rest.endswith("\n") and rest.split() else 1

    with MeasurementStore(path) as store:
        num_batches, remainder = divmod(len(store), 5)
        assert remainder == 0
        assert num_batches >= reported
        for i in range(num_batches):
            for j in range(5):
                back = store.get((f"w-{i}", "FOMC", "test", str(j)))
                assert back is not None
                assert (back.loss, back.score) == (i, j)
                assert np.all(back.nll == i) and np.all(back.targets == j) and len(back.scores) == 2000
        store.put(key(), measurement())
        assert store.missing([key()]) == []


def test_several_processes_may_make_and_fill_one_store(tmp_path):
    path = tmp_path / "m.sqlite"
    writers = [write_in_another_process(path, name=f"w{n}", batch=2, count=20) for n in range(3)]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    with MeasurementStore(path) as store:
        assert len(store) == 3 * 2 * 20
