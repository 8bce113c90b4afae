"""20Minuten (Kew et al. 2023): a German news paragraph in simpler words."""

import re

from mcanalysis.tasks.task import Task

# TRACE ends its prompts with "Simplification:", the embedded stand-in with "Simplified:".
_PARAGRAPH = re.compile(r"Paragraph:\s(.*?)\s+Simplifi(?:cation|ed):\s*\Z", re.DOTALL)


def paragraph(prompt: str) -> str:
    """Return the paragraph to simplify, without the instruction; a prompt of another form comes back whole.

    SARI compares with this text: leaving the instruction in would count its words as wrongly deleted.

    >>> paragraph("Provide a simplified version.\\n\\nParagraph:\\nEs regnet.\\n\\nSimplification:")
    'Es regnet.'
    """
    match = _PARAGRAPH.search(prompt)
    return match[1] if match else prompt


TASK = Task(
    name="20Minuten",
    language="de",
    score="sari",
    max_new_tokens=192,  # room for a paragraph of German, whose words take several tokens each
    source=paragraph,
    description="Simplification of a German news paragraph.",
)
