"""Chats, rows with `messages` of roles and contents: one question, and the assistant's answer to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mcanalysis.tasks.raw.rows import Values
from mcanalysis.tasks.task import Example

NO_ANSWER = "the last message is not the assistant's"
SEVERAL_TURNS = "several turns"
NO_TEXT = "a message that is not text"


def is_chat(rows: Sequence[Values]) -> bool:
    """Whether rows are chats.

    >>> is_chat([{"messages": [{"role": "user", "content": "Hi"}]}])
    True
    """
    return bool(rows) and all(isinstance(row.get("messages"), list) for row in rows)


def example(row: Values) -> Example | str:
    """The user's message as the prompt, a system message in front of it, and the assistant's last one as the answer.

    Why not, for a chat of several turns: what the assistant said before would have to be written into the prompt by
    some template, and which one would be a guess.

    >>> example({"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]})
    Example(prompt='2 + 2?', answer='4')
    """
    messages = [m for m in row["messages"] if isinstance(m, dict)]
    roles = [m.get("role") for m in messages]
    if not roles or roles[-1] != "assistant":
        return NO_ANSWER
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        return SEVERAL_TURNS
    texts = [_text(m.get("content")) for m in messages]
    if None in texts:
        return NO_TEXT
    *asked, answer = (text or "" for text in texts)
    return Example("\n\n".join(filter(None, asked)), answer)


def _text(content: Any) -> str | None:
    """A message's text; parts of text put together; None where a part is something else."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    return None
