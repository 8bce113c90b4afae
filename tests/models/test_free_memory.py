"""Memory that is left: the machine's, and what control groups of either version leave of it."""

import pytest

from mcanalysis.errors import UserError
from mcanalysis.models.free_memory import check_memory, free_memory

KIB = 1024


@pytest.fixture
def system(tmp_path):
    """system(groups, folders) -> what is free on a machine with 9,000 KiB left and 500 KiB of swap."""

    def make(groups, folders):
        (tmp_path / "proc" / "self").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / "meminfo").write_text("MemTotal: 10000 kB\nMemAvailable:   9000 kB\nSwapFree: 500 kB\n")
        (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
        for folder, files in folders.items():
            (tmp_path / "cgroup" / folder).mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (tmp_path / "cgroup" / folder / f"memory.{name}").write_text(text)
        return free_memory(tmp_path / "proc", tmp_path / "cgroup")

    return make


def test_without_groups_it_is_the_machine_s(system):
    assert system("", {}) == 9500 * KIB
    assert system("0::/\n", {"": {"max": "max\n", "current": "5\n"}}) == 9500 * KIB


def test_the_tightest_group_counts_and_caches_of_files_do_not(system):
    own = {"max": f"{4000 * KIB}\n", "current": f"{1500 * KIB}\n", "stat": f"anon 5\nfile {300 * KIB}\n"}
    assert system("0::/job/step\n", {"job/step": own}) == (4000 - 1500 + 300 + 500) * KIB
    above = {"max": f"{2000 * KIB}\n", "current": f"{1500 * KIB}\n", "stat": "anon 5\nfile 0\n"}
    assert system("0::/job/step\n", {"job": above}) == (2000 - 1500 + 500) * KIB


def test_groups_of_version_1(system):
    groups = "12:cpu,cpuacct:/x\n4:memory:/docker/7\n0::/\n"
    own = {
        "limit_in_bytes": f"{3000 * KIB}",
        "usage_in_bytes": f"{2900 * KIB}",
        "stat": f"cache 1\ntotal_cache {40 * KIB}\n",
    }
    assert system(groups, {"memory": own}) == (3000 - 2900 + 40 + 500) * KIB  # in a container its path is not there


def test_a_system_that_does_not_say_refuses_nothing(tmp_path):
    assert free_memory(tmp_path, tmp_path) is None


def test_what_is_needed_and_what_is_there_are_said():
    check_memory(5, "it", free=5)
    with pytest.raises(UserError, match=r"Expected 16\.1 GB of free memory on cuda:0 for it, got 8\.0 GB"):
        check_memory(16_060_000_000, "it", 8_000_000_000, "memory on cuda:0")
