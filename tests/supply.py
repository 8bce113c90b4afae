"""`make supply`: the licences of all packages that the package and its extras bring, and known weaknesses of each.

Licences are those that `pip-licenses` reads; one that is not on the list below, or none, is named and the exit code 1.
So is an LGPL of what comes without an extra: who wants none of it can leave the extra.
Weaknesses are asked of `pip-audit`'s service: packages that it does not know, or all if it cannot be reached, are
"not run", never "none". What is not installed is named, too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path
from typing import Any

from license_expression import ExpressionError, get_spdx_licensing
from packaging.requirements import Requirement

BIN = Path(sys.executable).parent
SPDX = get_spdx_licensing()
DEVELOPMENT = {"test", "docs", "build", "supply"}  # extras whose packages no user of ours has
KINDS = {  # licences of the SPDX list, and classifiers and words of before it, each as it stands; stricter ones last
    "public domain": ("CC0-1.0", "Zlib", "Unlicense", "OFL-1.1"),
    "MIT": ("MIT", "MIT-0", "MIT-CMU", "MIT License"),
    "BSD": ("0BSD", "BSD-2-Clause", "BSD-3-Clause", "BSD", "BSD License", "BSL-1.0", "ISC", "ISC License (ISCL)"),
    "Apache": ("Apache-2.0", "Apache 2.0", "Apache 2.0 License", "Apache Software License", "Apache License 2.0",
               "Apache-2.0 WITH LLVM-exception"),
    "Python": ("PSF-2.0", "Python Software Foundation License", "CNRI-Python"),
    "Mozilla": ("MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"),  # of its files, not of what imports them
    "LGPL": (
        "GNU Lesser General Public License v2 or later (LGPLv2+)", "GNU Lesser General Public License v3 (LGPLv3)",
        "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later",
    ),
}  # fmt: skip
KIND_OF = {licence: kind for kind, licences in KINDS.items() for licence in licences}
READ_BY_HAND = {"word2number": "MIT"}  # its field has the whole text of the MIT licence


def brought(package: str = "mcanalysis", without: Iterable[str] = DEVELOPMENT) -> Iterator[str]:
    """The names of all packages that a package and its extras need, and those that these need; of what is not installed
    nothing further is known."""
    seen, waiting = set(), [(package, None)]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name != package:
            yield re.sub(r"[-_.]+", "-", name).lower()
        try:
            needed = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:  # of an extra
            continue
        for one in needed:
            every = re.findall(r"""extra == ["']([^"']+)["']""", str(one.marker)) if name == package else [extras or ""]
            if any(extra not in without and _applies(one, extra) for extra in (every or [""])):
                waiting += [(one.name, extra) for extra in (one.extras or [None])] + [(one.name, None)]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def family(licence: str) -> str | None:
    """Which of the kinds above a licence is; None where it is, or has a part that is, none of them.

    Of several by AND, or several classifiers, all have to be known and the strictest is told; of several by OR the
    first that is known.

    >>> family("Apache-2.0 AND MIT"), family("GPL-3.0-only OR MIT"), family("MIT AND GPL-3.0-only"), family("UNKNOWN")
    ('Apache', 'MIT', None, None)
    >>> family("GPL-3.0-only AND (MIT OR Apache-2.0)"), family("BSD License; GNU General Public License (GPL)")
    (None, None)
    >>> family("(Apache-2.0 WITH LLVM-exception) AND MIT"), family("MIT License and GPL"), family("MIT; another")
    ('Apache', None, None)
    """
    if licence in KIND_OF:
        return KIND_OF[licence]
    if ";" in licence:
        return _strictest(KIND_OF.get(part.strip()) for part in licence.split(";"))
    try:
        return _kind(SPDX.parse(licence, validate=True))
    except ExpressionError:
        return None


def _kind(expression: Any) -> str | None:
    if isinstance(expression, SPDX.OR):
        return next(filter(None, map(_kind, expression.args)), None)
    if isinstance(expression, SPDX.AND):
        return _strictest(map(_kind, expression.args))
    return KIND_OF.get(expression.render()) if expression else None


def _strictest(kinds: Iterable[str | None]) -> str | None:
    found = list(kinds)
    return None if None in found else max(found, key=[*KINDS].index)  # type: ignore[arg-type]


def audit(said: str, names: Iterable[str]) -> tuple[int, Mapping[str, str]]:
    """How many of the packages the service knows, and the weaknesses of each, out of what `pip-audit` printed.

    >>> audit('{"dependencies": [{"name": "A", "version": "1", "vulns": [{"id": "X-1"}]}]}', ["a", "b"])
    (1, {'a': 'X-1'})
    """
    try:
        listed = json.loads(said)["dependencies"]
    except (ValueError, KeyError, TypeError):  # the service could not be reached
        return 0, {}
    wanted = set(names)
    found = {
        re.sub(r"[-_.]+", "-", one["name"]).lower(): one.get("vulns") for one in listed if "skip_reason" not in one
    }
    known = {name: vulns for name, vulns in found.items() if name in wanted}
    return len(known), {name: ", ".join(v["id"] for v in vulns) for name, vulns in known.items() if vulns}


def main() -> int:
    """Print both tables; 1 where a licence is none of the kinds above, or a weakness is known."""
    names = sorted(set(brought()))
    tool = [str(BIN / "pip-licenses"), "--from=mixed", "--format=json", "--with-system"]
    read = json.loads(subprocess.run(tool, check=True, capture_output=True, text=True).stdout)
    licences = {re.sub(r"[-_.]+", "-", one["Name"]).lower(): one["License"] for one in read}
    absent = [name for name in names if name not in licences]
    names = [name for name in names if name in licences]
    kinds = {name: READ_BY_HAND.get(name) or family(licences[name]) for name in names}
    always = set(brought(without=metadata("mcanalysis").get_all("Provides-Extra") or ()))
    odd = {name: licences[name].partition("\n")[0][:60] for name in names if not kinds[name]}
    odd |= {name: "LGPL, without an extra" for name in always if kinds.get(name) == "LGPL"}
    lines = ["| licence | packages |", "| --- | ---: |"]
    for kind, number in Counter(kind for kind in kinds.values() if kind).most_common():
        named = f" ({', '.join(n for n in names if kinds[n] == kind)})" if number <= 4 else ""
        lines.append(f"| {kind} | {number}{named} |")
    lines += ["", f"not looked at, as not installed: {', '.join(absent) or 'none'}"]
    lines += [*(f"{name}: {licence}, which is none of these" for name, licence in odd.items())]
    command = [str(BIN / "pip-audit"), "--format", "json", "--progress-spinner", "off"]
    known, weak = audit(subprocess.run(command, capture_output=True, text=True).stdout, names)
    lines += [
        f"known weaknesses: not run for {len(names) - known} of {len(names)} packages, of which the service says "
        f"nothing or cannot be reached; of {known} asked {len(weak)} have one",
        *(f"{name}: {ids}" for name, ids in weak.items()),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if odd or weak else 0


if __name__ == "__main__":
    sys.exit(main())
