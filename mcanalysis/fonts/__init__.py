"""A font for Chinese text, so that figures and reports show it on a machine that has none.

`NotoSansSC-Subset.ttf` holds 4,345 glyphs of Noto Sans CJK SC Regular 2.004 as TrueType outlines without hinting or
layout tables: Latin letters with their accents, the punctuation and the 3,755 common ideographs of GB 2312, and the
rarer ones of the benchmarks' Chinese tasks. Its licence, the SIL Open Font License 1.1, lies beside it (`OFL.txt`).
"""

from pathlib import Path

FAMILY = "Noto Sans SC Subset"
FILE = Path(__file__).parent / "NotoSansSC-Subset.ttf"
LICENCE = Path(__file__).parent / "OFL.txt"

__all__ = ["FAMILY", "FILE", "LICENCE"]
