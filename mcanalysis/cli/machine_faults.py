"""What the machine refuses, in one line: a full disk, no permission, too many open files, no memory."""

from __future__ import annotations

import errno
import re
import sys

from mcanalysis.errors import is_of_an_archive_writer, shortened

_REMEDIES = {
    errno.ENOSPC: "make room there, or choose another folder",
    errno.EDQUOT: "make room there, or choose another folder",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EACCES: "change its permissions, or choose another folder",
    errno.EPERM: "change its permissions, or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "close other programs, or choose a smaller --batch-size or --token-budget",
    errno.ENAMETOOLONG: "choose shorter names",
    errno.EIO: "check that disk",
}
_NUMBER = re.compile(r"os error (\d+)|code: (\d+)|Errno (\d+)")  # safetensors' errors are those of Rust, as text


def machine_fault(error: BaseException) -> str | None:
    """What the machine refused and what helps, as one sentence; None for an error that is not the machine's.

    Errors of the system by their number, wherever a library kept it; no memory, of Python's, PyTorch's and a GPU's.

    >>> machine_fault(OSError(errno.ENOSPC, "No space left on device", "runs/a/manifest.json"))[:64]
    "Expected a machine that lets us write or read 'runs/a/manifest.j"
    >>> machine_fault(ValueError("no")) is None
    True
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or _is_out_of_memory(error, text):
        return (
            f"Expected enough memory, got: {shortened(text, 200) or 'none left'}; choose a smaller --batch-size, "
            "--token-budget, --lora-rank or model. What is stored is kept."
        )
    found = _NUMBER.search(text)
    number = error.errno if isinstance(error, OSError) else None
    if number is None and found and (type(error).__name__ == "SafetensorError" or isinstance(error, RuntimeError)):
        number = int(next(filter(None, found.groups())))
    if number is None and isinstance(error, RuntimeError) and is_of_an_archive_writer(text):
        number = errno.ENOSPC
    if number is None:
        return None
    what = f" '{shortened(error.filename, 120)}'" if isinstance(error, OSError) and error.filename else ""
    reason = (error.strerror if isinstance(error, OSError) else None) or shortened(text, 200)
    remedy = _REMEDIES.get(number, "check the path and its folder")
    return (
        f"Expected a machine that lets us write or read{what or ' files'}, got: {reason}; {remedy}. "
        "What is stored is kept: give the same command again."
    )


def _is_out_of_memory(error: BaseException, text: str) -> bool:
    torch = sys.modules.get("torch")  # who has not loaded it has none of its errors
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text.lower())
