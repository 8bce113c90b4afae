"""A chat template around prompts: each a user's message with the generation prompt behind it, the answer its reply.

What a template writes is told by `apply_chat_template` alone: its text in front of the prompt (with a system prompt of
its own, if it has one), between prompt and answer, and the token that ends the answer's turn.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from mcanalysis.errors import DataError, UserError
from mcanalysis.models.end_tokens import add_end, end_ids, split_end
from mcanalysis.store.hashing import hash_json
from mcanalysis.tasks.task import TaskData

logger = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"

_NAME = "mcanalysis_chat_template"  # on a tokenizer: whoever encodes has it
_USER, _ANSWER = "Qzxquestion", "Qzxanswer"  # texts that no template writes itself
# Llama's own default: numbers must not depend on the day they are measured. A template is given no functions, and so
# gets a macro in front, whose last `+` leaves the template's first line break alone.
_DAY = datetime(2024, 7, 26)
_CODES = ("%-d", "%d", "%-m", "%m", "%b", "%B", "%y", "%Y", "%a", "%A", "%j", "%H", "%M", "%S")
_FIXED_DAY = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('{code}', '{_DAY.strftime(code)}')" for code in _CODES)
    + " }}{%- endmacro +%}"
)
_REMEDY = "correct it, choose another --chat-template FILE, or --chat-template none"

_told: set[tuple[str, str]] = set()


def read_template(name: str) -> str:
    """The text of a Jinja file; `auto` and `none` are themselves. Raises `UserError` for a file that cannot be read.

    >>> read_template("auto")
    'auto'
    """
    if name in (AUTO, NONE):
        return name
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UserError(
            f"Expected auto, none or a Jinja file, got '{name}' ({reason}); check --chat-template."
        ) from None


def template_name(text: str) -> str:
    """What tells a template from others, for a reader; nothing for `none`.

    >>> template_name("{{ messages[0].content }}:"), template_name("none")
    ('jinja:faff1caa', '')
    """
    return "" if text == NONE else f"jinja:{hash_json(text)[:8]}"


class ChatTemplate:
    """A Jinja template as it frames one question and its answer with a tokenizer.

    `front`, `back`: the text before a prompt, and that between prompt and answer. `end`: the id of the token that ends
    an answer: the first behind it at which the model stops, else the first special one, else the tokenizer's end token.
    `name` tells it from others.

    What a template writes between the generation prompt and an answer (an empty thought) belongs to the prompt, so that
    it is given and not learned; white space there goes with the answer. Dates are those of one fixed day.

    Raises `UserError` in one line for a template that is no Jinja, raises, leaves out or repeats the prompt or the
    answer, or whose generation prompt is not what it writes before an answer.
    """

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer, self.text, self.name = tokenizer, text, template_name(text)
        self._asked = self._rendered(_USER)
        whole = self._rendered(_USER, _ANSWER)
        if (times := self._asked.count(_USER)) != 1:
            raise UserError(f"Expected a chat template that writes the prompt once, got it {times} times; {_REMEDY}.")
        if not whole.startswith(self._asked):
            parting = next((i for i, (a, b) in enumerate(zip(whole, self._asked, strict=False)) if a != b), len(whole))
            with_answer, alone = (text[max(parting - 30, 0) : parting + 50] for text in (whole, self._asked))
            raise UserError(
                "Expected a chat template that begins a prompt with its answer as it begins the prompt alone, got "
                f"{with_answer!r} and {alone!r}; {_REMEDY}."
            )
        behind = whole[len(self._asked) :]
        if (times := behind.count(_ANSWER)) != 1:
            raise UserError(f"Expected a chat template that writes the answer once, got it {times} times; {_REMEDY}.")
        self.front, _, self._generation = self._asked.partition(_USER)
        self._before, _, self._behind = behind.partition(_ANSWER)
        self._given = self._before if self._before.strip() else ""
        self.back = self._generation + self._given
        self._closing, self.end = self._find_end()
        self._answers: dict[str, tuple[int, ...]] = {}
        start, written = tokenizer.bos_token, self.front + self.back + self._behind
        self._marks = [token for token in self._special() if token in written and token != start]
        self._around = [part.removeprefix(start or "").strip() for part in (self.front, self.back)]
        self._plain: dict[str, bool] = {}

    def prompt(self, prompt: str) -> tuple[str, int, int]:
        """All text before the answer, and where in it the prompt's own text begins and ends.

        The tokenizer's start token in front of a prompt is left out: where it stands, and whether, says the template.
        Raises `DataError` where the template changes more of a prompt than white space at its ends.
        """
        start = self.tokenizer.bos_token
        while start and prompt.startswith(start):
            prompt = prompt[len(start) :]
        asked = self._rendered(prompt)
        first, last = len(self.front), len(asked) - len(self._generation)
        self._check_whole(prompt, asked, self.front, self._generation)
        return asked + self._given, first, last

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """The tokens of an answer, as they follow a prompt, with the one that ends it.

        Raises `DataError` where the template changes more of an answer than white space at its ends.
        """
        if answer not in self._answers:
            text = split_end(answer, self.tokenizer)[0]
            whole = self._rendered(_USER, text)
            before = self._asked + self._before
            own = self._check_whole(text, whole, before, self._behind)
            prompt = self._asked + self._given
            reply = before[len(prompt) :] + own + self._closing
            ids, known = self.ids(prompt + reply), self.ids(prompt)
            # Where the two share a token the answer is read by itself, as it is when it is generated.
            ids = ids[len(known) :] if ids[: len(known)] == known else self.ids(reply)
            self._answers[answer] = tuple(ids if self._closing and ids[-1:] == [self.end] else [*ids, self.end])
        return self._answers[answer]

    def frame_sizes(self, text: str, first: int, last: int) -> tuple[int, int]:
        """How many tokens of `prompt`'s text hold any of the template's own, at its beginning and at its end."""
        if not getattr(self.tokenizer, "is_fast", False):  # without offsets: the parts read by themselves
            return len(self.ids(text[:first])), len(self.ids(text[last:]))
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return sum(start < first for start, _ in offsets), sum(stop > last for _, stop in offsets)

    def ids(self, text: str) -> list[int]:
        """The tokens of a text to which the tokenizer adds none."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def frames(self, data: TaskData) -> bool:
        """Whether a task's prompts are plain, and so are put into the template; not where all are chats already.

        A chat holds one of the template's special tokens (a start token aside), or begins and ends with what it writes
        around a prompt. Raises `DataError` where only some prompts are chats.
        """
        if data.content_hash not in self._plain:
            prompts = [e.prompt for examples in data.splits.values() for e in examples]
            chats = [prompt for prompt in prompts if self._is_chat(prompt)]
            if 0 < len(chats) < len(prompts):
                raise DataError(
                    f"Expected prompts of {data.task.name} that are all plain or all chats already, got {len(chats)} "
                    f"of {len(prompts)} with special tokens of the chat template, the first {chats[0][:40]!r}; take "
                    "these tokens out, or choose --chat-template none."
                )
            self._plain[data.content_hash] = not chats
            if chats and (data.content_hash, self.name) not in _told:
                _told.add((data.content_hash, self.name))
                logger.warning("prompts of %s are chats already: no chat template is applied to them", data.task.name)
        return self._plain[data.content_hash]

    def _is_chat(self, prompt: str) -> bool:
        before, behind = self._around
        text = prompt.removeprefix(self.tokenizer.bos_token or "").strip()
        is_framed = before and behind and text.startswith(before) and text.endswith(behind)
        return bool(is_framed) or any(mark in prompt for mark in self._marks)

    def _special(self) -> dict[str, int]:
        """The texts that the tokenizer reads as one special token, and those that end an answer, with their ids."""
        known = {t.content: i for i, t in getattr(self.tokenizer, "added_tokens_decoder", {}).items() if t.special}
        known |= {self.tokenizer.convert_ids_to_tokens(i): i for i in end_ids(self.tokenizer)}
        return {text: i for text, i in known.items() if text}

    def _find_end(self) -> tuple[str, int]:
        """What is written behind an answer up to the token that ends it, and that token's id."""
        behind, ends = self._behind, end_ids(self.tokenizer)
        here = sorted(
            (behind.index(text), text, i)
            for text, i in self._special().items()
            if text in behind and self.ids(text) == [i]
        )
        found = next((h for h in here if h[2] in ends), here[0] if here else None)
        if found is None:
            return "", self.tokenizer.eos_token_id
        place, text, token = found
        return behind[:place] + text, token

    def _check_whole(self, text: str, whole: str, before: str, behind: str) -> str:
        """What stands between the template's own texts, which is `text` but for white space at its ends."""
        own = whole[len(before) : len(whole) - len(behind)]
        if not (whole.startswith(before) and whole.endswith(behind) and own.strip() == text.strip()):
            raise DataError(
                f"Expected a chat template that writes {text[:40]!r} as it is, in the same frame as other texts, got "
                f"{whole[:200]!r}; {_REMEDY}."
            )
        return own

    def _rendered(self, prompt: str, answer: str | None = None) -> str:
        text = _FIXED_DAY + self.text if "strftime_now" in self.text else self.text
        messages = [{"role": "user", "content": prompt}]
        messages += [] if answer is None else [{"role": "assistant", "content": answer}]
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=text, tokenize=False, add_generation_prompt=answer is None
            )
        except Exception as error:  # a template is a program, and raises what it likes
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UserError(
                f"Expected a chat template that renders a user's message{'' if answer is None else ' and its answer'}, "
                f"got: {reason[:300]}; {_REMEDY}."
            ) from None


def use_template(tokenizer: Any, text: str) -> None:
    """Let all that is encoded with a tokenizer be put into a template, a Jinja text; `none` changes nothing.

    The tokenizer's `end_ids` then have the template's end, at which generation stops. Raises what `ChatTemplate` does.
    """
    if text != NONE:
        template = ChatTemplate(tokenizer, text)
        setattr(tokenizer, _NAME, template)
        add_end(tokenizer, template.end)


def template_for(data: TaskData, tokenizer: Any) -> ChatTemplate | None:
    """The template that a task's prompts are put into with this tokenizer; None where they are read as they are, as
    text without a score is."""
    template = getattr(tokenizer, _NAME, None)
    return template if template is not None and data.task.has_score and template.frames(data) else None


def choose_template(asked: str, tokenizer: Any, tasks: Sequence[TaskData]) -> str:
    """The Jinja text that prompts of these tasks are put into, or `none`; what `auto` decides is said once.

    `asked`: `none`, a Jinja text, or `auto`: the tokenizer's own template where its model was trained to answer in it
    (it stops, by its own configuration, at the token that ends an answer there; tokenizers of bases that were only
    pre-trained often have a template, too) and the prompts of a task are plain. Raises what `ChatTemplate` does, and
    `DataError` for a text where all tasks are chats already.
    """
    if asked == NONE:
        return NONE
    text = (_own(tokenizer) or "") if asked == AUTO else asked
    if asked == AUTO and not text:  # an empty file is a template, one that drops the prompt
        return NONE
    template = ChatTemplate(tokenizer, text)
    if asked == AUTO and template.end not in end_ids(tokenizer):
        _tell(
            template,
            "the tokenizer has a chat template, which is not applied: the model does not stop at "
            f"{tokenizer.convert_ids_to_tokens(template.end)}, which ends an answer in it; --chat-template FILE "
            "applies one",
        )
        return NONE
    if any([template.frames(task) for task in tasks]):  # all of them are looked at
        if asked == AUTO:
            _tell(
                template,
                f"prompts are put into the tokenizer's chat template ({template.name}); --chat-template none leaves "
                "them as they are",
            )
        return text
    if asked != AUTO:
        raise DataError(
            "Expected plain prompts with --chat-template FILE, got chats in all tasks; leave --chat-template out."
        )
    return NONE


def warn_of_others(folders: Sequence[Path], tokenizer: Any) -> None:
    """Say where adapters come with a chat template that is not the base's: they may have been trained in it.

    The tokenizer is always the base's, so that all points of a path read the same tokens.
    """
    for folder in folders:
        file = folder / "chat_template.jinja"
        text = None
        with suppress(OSError, ValueError, AttributeError):  # damage of what is not used
            if file.is_file():
                text = file.read_text(encoding="utf-8-sig")
            else:
                text = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
        if isinstance(text, str) and text.strip() and text.strip() != (_own(tokenizer) or "").strip():
            logger.warning(
                "the adapter '%s' comes with a chat template of its own, which the base's tokenizer does not have: it "
                "is not applied; if it was trained in it, --chat-template FILE applies it%s",
                folder,
                f", such as {file}" if file.is_file() else "",
            )


def _own(tokenizer: Any) -> str | None:
    """The template that a tokenizer comes with; of several that which is called `default`."""
    own = getattr(tokenizer, "chat_template", None)
    return own.get("default") if isinstance(own, dict) else own


def _tell(template: ChatTemplate, line: str) -> None:
    if (line, template.name) not in _told:
        _told.add((line, template.name))
        logger.warning("%s", line)
