"""A figure as the bytes of a file, everything in it enlarged by one factor; equal figures give equal bytes."""

from __future__ import annotations

import io
import re

from matplotlib.backends.backend_pdf import Op, PdfFile, PdfPages
from matplotlib.figure import Figure

# None drops what matplotlib would add by itself: times and versions.
_PDF_METADATA = {"CreationDate": None, "Creator": None, "Producer": None}


def png_bytes(figure: Figure, scale: float, resolution: float) -> bytes:
    """PNG with `resolution` dots per inch of the enlarged figure."""
    return _saved(figure, format="png", dpi=resolution * scale, metadata={"Software": None})


def svg_bytes(figure: Figure, scale: float, resolution: float) -> bytes:
    """SVG; what cannot be drawn as lines has `resolution` dots per inch."""
    content = _saved(figure, format="svg", dpi=resolution * scale, metadata={"Date": None, "Creator": None})
    head, tag, rest = content.partition(b"<svg ")
    tag_end = rest.index(b">")
    size = re.compile(rb'(\s|^)(width|height)="([0-9.]+)pt"')  # the viewBox stays, so that everything grows with it
    grown = size.sub(lambda m: b'%b%b="%.6gpt"' % (m[1], m[2], float(m[3]) * scale), rest[:tag_end])
    return head + tag + grown + rest[tag_end:]


def pdf_bytes(figure: Figure, scale: float, resolution: float) -> bytes:
    """PDF with its fonts embedded; what cannot be drawn as lines has `resolution` dots per inch."""
    buffer = io.BytesIO()
    with _ScaledPages(buffer, scale) as pages:
        figure.savefig(pages, format="pdf", dpi=resolution * scale)  # type: ignore[arg-type]
    return buffer.getvalue()


def _saved(figure: Figure, **settings) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **settings)
    return buffer.getvalue()


class _ScaledFile(PdfFile):
    """Its pages are larger than what is drawn on them, and a transformation enlarges the drawing to their size."""

    scale = 1.0

    def newPage(self, width: float, height: float) -> None:  # noqa: N802, matplotlib's name
        super().newPage(width * self.scale, height * self.scale)
        if self.scale != 1.0:
            self.output(self.scale, 0, 0, self.scale, 0, 0, Op.concat_matrix)


class _ScaledPages(PdfPages):
    """Where matplotlib's own way to write several pages takes the file to write to."""

    def __init__(self, buffer: io.BytesIO, scale: float) -> None:
        super().__init__(buffer, metadata=_PDF_METADATA)
        self._scale = scale

    def _ensure_file(self) -> PdfFile:
        if self._file is None:
            self._file = _ScaledFile(self._filename, metadata=self._metadata)
            self._file.scale = self._scale
        return self._file
