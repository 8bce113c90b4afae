"""Jobs in this process and in workers: order, follow-ups, progress, and errors that come through."""

import os
import threading

import pytest

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.experiments.jobs import Job, default_workers, run_jobs
from mcanalysis.progress import silent


def square(x, progress):
    bar = progress(total=2, desc=f"square {x}")
    bar.update(1)
    bar.update(1)
    bar.close()
    return x * x, os.getpid()


def fail(kind, progress):
    if kind == "unknown":
        raise UnknownNameError("task", "FOMCC", ["FOMC"])
    raise UserError("Expected a thing, got another; do mend it.")


class Recorder:
    """A progress bar that remembers what it was told."""

    def __init__(self):
        self.bars = {}
        self.closed = []

    def __call__(self, *, total, desc):
        recorder = self

        class Bar:
            def update(self, n=1):
                recorder.bars[desc] = recorder.bars.get(desc, 0) + n

            def close(self):
                recorder.closed.append(desc)

        return Bar()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_and_follow_ups(workers):
    results, seen = {}, Recorder()

    def follow(job, result):
        assert threading.current_thread() is threading.main_thread()
        results[job.arguments[0]] = result
        return [Job(square, (job.arguments[0] * 10,))] if job.arguments[0] < 10 else []

    run_jobs([Job(square, (x,)) for x in (1, 2, 3)], follow, workers, seen, total=6)
    assert {x: r[0] for x, r in results.items()} == {x: x * x for x in (1, 2, 3, 10, 20, 30)}
    processes = {r[1] for r in results.values()}
    assert (os.getpid() in processes) == (workers == 1)
    assert seen.bars == {"jobs": 6} | {f"square {x}": 2 for x in results}
    assert sorted(seen.closed) == sorted(seen.bars)


def test_follow_ups_go_first():
    order = []

    def follow(job, result):
        order.append(job.arguments[0])
        return [Job(square, (10,))] if job.arguments[0] == 1 else []

    run_jobs([Job(square, (1,)), Job(square, (2,))], follow, 1, silent)
    assert order == [1, 10, 2]


@pytest.mark.parametrize(("kind", "piece"), [("unknown", "Did you mean 'FOMC'?"), ("other", "do mend it")])
def test_an_error_of_a_worker_is_raised_here_in_its_own_words(kind, piece):
    with pytest.raises(UserError, match="mean" if kind == "unknown" else "mend") as caught:
        run_jobs([Job(fail, (kind,))], lambda job, result: [], 2, silent)
    assert piece in str(caught.value)


def test_large_models_and_accelerators_get_one_worker():
    assert default_workers("cuda", 10) == 1
    assert default_workers("cpu", 10**9) == 1
    assert default_workers("cpu", 10**6) >= 1
