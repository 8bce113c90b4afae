"""What makes a page self-contained and safe: its data, its drawing library, its font, and what it may run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from mcanalysis import fonts
from mcanalysis.errors import MissingPackageError

# Ideographs, their punctuation and full-width forms, as the browser's unicode-range has them too.
CJK = re.compile(r"[\u2e80-\u2fdf\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]")
UNICODE_RANGE = "U+2E80-2FDF, U+3000-303F, U+3400-4DBF, U+4E00-9FFF, U+F900-FAFF, U+FF00-FFEF"


def script_json(data: Any) -> str:
    r"""JSON that may stand between script tags: nothing in it can end the element or begin another.

    Raises `ValueError` for NaN and infinities, which are not JSON.

    >>> script_json(["</script>"])
    '["\\u003c/script\\u003e"]'
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)  # halves that UTF-8 cannot write


def plotly_source() -> str:
    """The drawing library as JavaScript; raises `UserError` where the extra is not installed."""
    if find_spec("plotly") is None:
        raise MissingPackageError("plotly", "for the pictures of the report", "report")
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def security_policy(scripts: Iterable[str]) -> str:
    """A policy under which a page loads nothing and runs these inline scripts, known by their hashes, and no other."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; form-action 'none'; base-uri 'none'"
    )


def font_face(text: str) -> str:
    """CSS that brings the Chinese characters of `text` along, empty where it has none."""
    wanted = set(CJK.findall(text))
    if not wanted:
        return ""
    source = base64.b64encode(_subset(fonts.FILE, wanted)).decode()
    return (
        f'@font-face {{ font-family: "{fonts.FAMILY}"; src: url(data:font/woff;base64,{source}) format("woff"); '
        f"unicode-range: {UNICODE_RANGE}; font-display: swap; }}"
    )


def _subset(file: Path, characters: Iterable[str]) -> bytes:
    """A font with these characters only, those it has, as WOFF; its name and licence stay in it."""
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    options = Options()
    options.name_IDs = ["*"]  # type: ignore[assignment]
    font = TTFont(file, recalcTimestamp=False)
    subsetter = Subsetter(options)
    subsetter.populate(text="".join(sorted(characters)))
    subsetter.subset(font)
    font.flavor = "woff"
    buffer = BytesIO()
    font.save(buffer)
    return buffer.getvalue()
