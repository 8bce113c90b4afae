"""`make supply`: the licences of all packages that the package and its extras bring, and known weaknesses of each.

Licences are those that `pip-licenses` reads; one that is not on the list below, or none, is named and the exit code 1.
So is an LGPL of what comes without an extra: who wants none of it can leave the extra.
Weaknesses are asked of `pip-audit`'s service: packages that it does not know, or all if it cannot be reached, are
"not run", never "none".
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

from packaging.requirements import Requirement

BIN = Path(sys.executable).parent
DEVELOPMENT = {"test", "docs", "build", "supply"}  # extras whose packages no user of ours has
KINDS = {
    "MIT": r"MIT(-CMU|-0)?|MIT License|The MIT License.*",
    "BSD": r"0?BSD(-[23]-Clause)?|BSD License|BSL-1\.0|ISC|ISC License.*",
    "Apache": r"Apache[- ]2\.0|Apache 2\.0 License|Apache Software License|Apache License.*|LLVM-exception",
    "Python": r"PSF-2\.0|Python Software Foundation License|CNRI-Python",
    "Mozilla": r"MPL-2\.0|Mozilla Public License 2\.0.*",  # of its files, not of what imports them
    "LGPL": r"(GNU Lesser General Public License|LGPL).*",
    "public domain": r"CC0-1\.0|Zlib|The Unlicense.*|Unlicense|Public Domain|OFL-1\.1",
}


def brought(package: str = "mcanalysis", without: Iterable[str] = DEVELOPMENT) -> Iterator[str]:
    """The names of all installed packages that a package and its extras need, and those that these need."""
    seen, waiting = set(), [(package, None)]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needed = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:  # of an extra that is not installed
            continue
        if name != package:
            yield re.sub(r"[-_.]+", "-", name).lower()
        for one in needed:
            every = re.findall(r"""extra == ["']([^"']+)["']""", str(one.marker)) if name == package else [extras or ""]
            if any(extra not in without and _applies(one, extra) for extra in (every or [""])):
                waiting += [(one.name, extra) for extra in (one.extras or [None])] + [(one.name, None)]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def family(licence: str) -> str | None:
    """Which of the kinds above a licence is; of several the first kind if one may choose, None where not all are known.

    >>> family("Apache-2.0 AND MIT"), family("BSD License; GNU General Public License (GPL)"), family("UNKNOWN")
    ('Apache', 'BSD', None)
    >>> family("GPL-3.0 OR MIT"), family("MIT AND GPL-3.0")
    ('MIT', None)
    """
    if len(choices := re.split(r"\s+OR\s+|;\s*", licence.strip())) > 1:
        return next((kind for choice in choices if (kind := family(choice))), None)
    parts = [part.strip(" ()") for part in re.split(r"\s+(?:AND|WITH)\s+", licence.split("\n")[0].strip())]
    kinds = [next((kind for kind, of in KINDS.items() if re.fullmatch(of, part)), None) for part in parts]
    return None if None in kinds else kinds[0]


def audit(said: str, names: Iterable[str]) -> tuple[int, Mapping[str, str]]:
    """How many of the packages the service knows, and the weaknesses of each, out of what `pip-audit` printed.

    >>> audit('{"dependencies": [{"name": "A", "version": "1", "vulns": [{"id": "X-1"}]}]}', ["a", "b"])
    (1, {'a': 'X-1'})
    """
    try:
        listed = json.loads(said)["dependencies"]
    except (ValueError, KeyError):  # the service could not be reached
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
    kinds = {name: family(licences.get(name, "UNKNOWN")) for name in names}
    always = set(brought(without=metadata("mcanalysis").get_all("Provides-Extra") or ()))
    odd = {name: licences.get(name, "none")[:60] for name in names if not kinds[name]}
    odd |= {name: "LGPL, without an extra" for name in always if kinds[name] == "LGPL"}
    lines = ["| licence | packages |", "| --- | ---: |"]
    for kind, number in Counter(kind for kind in kinds.values() if kind).most_common():
        named = f" ({', '.join(n for n in names if kinds[n] == kind)})" if number <= 4 else ""
        lines.append(f"| {kind} | {number}{named} |")
    lines += ["", *(f"{name}: {licence}, which is none of these" for name, licence in odd.items())]
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
