"""How much memory this process can still take: what the machine has free, and what its control groups leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mcanalysis.errors import UserError

_V1, _V2 = ("limit_in_bytes", "usage_in_bytes", "total_cache"), ("max", "current", "file")


def free_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes, or None where the system does not say. Rather too many than too few: swap and file caches count as free.

    The limits of control groups count, which containers and batch systems set, of the process's own and all above it.

    >>> free = free_memory()
    >>> free is None or free > 0
    True
    """
    machine = _numbers(proc / "meminfo", 1024)
    if "MemAvailable" not in machine:
        return None
    swap = machine.get("SwapFree", 0)
    free = [machine["MemAvailable"]]
    for folder, (limit, used, files) in _groups(proc / "self" / "cgroup", cgroups):
        try:
            most, taken = (int((folder / f"memory.{name}").read_text()) for name in (limit, used))
        except (OSError, ValueError):  # no limit: "max", or no such file
            continue
        free.append(max(most - taken + _numbers(folder / "memory.stat").get(files, 0), 0))
    return min(free) + swap


def check_memory(needed: int, what: str, free: int | None = None, where: str = "memory") -> None:
    """Raise `UserError` where so many bytes surely do not fit; `free`: what there is, by default `free_memory()`."""
    free = free_memory() if free is None else free
    if free is not None and needed > free:
        raise UserError(
            f"Expected {_size(needed)} of free {where} for {what}, got {_size(free)}; choose a smaller --model, a "
            "narrower --dtype (bfloat16), or a machine with more."
        )


def _size(number: int) -> str:
    return (
        f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number} bytes"
    )


def _groups(file: Path, root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of a process's groups and of those above, each with the names that its version gives to things."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = (root / "memory", _V1) if controllers else (root, _V2)
        own = top / path.strip("/")
        for folder in (own, *own.parents):
            yield folder, names
            if folder == top:
                break


def _numbers(file: Path, unit: int = 1) -> dict[str, int]:
    """The first number of each line by the name before it; nothing for a file that is not there."""
    try:
        rows = [line.replace(":", " ").split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) * unit for row in rows if len(row) > 1 and row[1].isdigit()}
