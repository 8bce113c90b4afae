"""The fifteen tasks of Super-NaturalInstructions that SAPT and others learn one after another.

Names and files are those of SAPT (Zhao et al. 2024, github.com/circle-hit/SAPT, commit 52a52b9): three tasks each of
dialogue generation, information extraction, question answering, summarisation and sentiment. SAPT scores all of them by
ROUGE-L; here answers that are a label or a letter have to match. The data sets on the hub were not seen loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mcanalysis.errors import DataError
from mcanalysis.tasks.published.hub import HubFile, rows_from_hub
from mcanalysis.tasks.published.splits import apart, eval_of_test, files_of
from mcanalysis.tasks.raw.rows import NamedRows, Values, read_file
from mcanalysis.tasks.task import SPLITS, Example, Task, TaskData

SIZES = {"train": 1000, "eval": 100, "test": 100}
"""The most examples of a split, as in SAPT's files."""

_CASE = "Now complete the following example -\n"


@dataclass(frozen=True)
class Instructed:
    """A task of Super-NaturalInstructions: a definition, and pairs of an input and one or several right outputs.

    A prompt is `Definition: …`, an empty line, `Now complete the following example -`, `Input: …`, `Output:`, as in
    SAPT and Tk-Instruct without examples. Of several right outputs the first is the answer: a score is a lower bound.
    """

    task: Task

    @property
    def folder_names(self) -> tuple[str, ...]:
        """What its folder may be called."""
        return (self.task.name,)

    def from_folder(self, folder: Path) -> TaskData:
        """Load it from a folder: files of the original form, or of the hub's columns `input` and `output`.

        SAPT's dev and test rows are the same: see `eval_of_test`.
        """
        splits = {}
        for split in SPLITS:
            splits[split] = list(self._of_files(files_of(folder, split)))
        if splits["eval"] == splits["test"]:
            splits["eval"], splits["test"] = eval_of_test(splits["test"], self.task.name)
        return apart(self.task, splits, str(folder))

    def from_hub(self, commit: str | None = None) -> TaskData:
        """Load it from the hub; its `origin` is the data set and the commit that was loaded."""
        recipe = ["draw-1", SIZES, self._prompt("", "")]
        file = HubFile(f"Lots-of-LoRAs/{self.task.name}", None, self.task.name, recipe)
        return rows_from_hub(file, self._draw, commit).task_data(self.task)

    def _draw(self, load: Callable[[str], NamedRows]) -> TaskData:
        splits = {}
        for split, name in (("train", "train"), ("eval", "valid"), ("test", "test")):
            rows = load(name)
            numbers = list(range(len(rows)))
            Random(f"mcanalysis-draw-1/{self.task.name}/{split}").shuffle(numbers)
            chosen = rows.take(numbers[: SIZES[split]])
            splits[split] = list(self._examples(chosen, "", f"{name} rows of {self.task.name}"))
        return apart(self.task, splits, self.task.name)

    def _of_files(self, files: Sequence[Path]) -> Iterator[Example]:
        for file in files:
            rows, about = read_file(file)
            said = about.get("Definition") or ""
            yield from self._examples(rows, said if isinstance(said, str) else str(said[0]), str(file))

    def _examples(self, rows: Sequence[Values], definition: str, where: str) -> Iterator[Example]:
        for n, row in enumerate(rows):
            text, output = row.get("input"), row.get("output")
            answer = output[0] if isinstance(output, list) and output else output
            if not isinstance(text, str) or not isinstance(answer, str):
                raise DataError(
                    f'Expected "input", a text, and "output", a text or a list of texts, in {where} at index {n}, got '
                    f"{', '.join(map(repr, row)) or 'no keys'}; give the original file."
                )
            yield Example(self._prompt(definition, text), answer.strip())

    def _prompt(self, definition: str, text: str) -> str:
        """The prompt; the hub's inputs bring definition and examples, of which the latter are left out."""
        if not definition and text.startswith("Definition: "):
            said, _, _ = text.removeprefix("Definition: ").partition("\n\nPositive Example 1 -")
            _, found, case = text.rpartition(_CASE)
            if found:
                definition = said.partition(f"\n\n{_CASE}")[0]
                text = case.removeprefix("Input: ").rstrip().removesuffix("Output:").rstrip()
        return f"Definition: {definition.strip()}\n\n{_CASE}Input: {text.strip()}\nOutput:"


_LABELLED = {
    "task363_sst2_polarity_classification": "Whether a sentence about a film is positive or negative.",
    "task073_commonsenseqa_answer_generation": "Which answer to a question is right, a letter.",
    "task1687_sentiment140_classification": "Whether a tweet is positive or negative.",
    "task875_emotion_classification": "Which of six emotions a sentence has.",
}
_WRITTEN = {
    "task1572_samsum_summary": "Summary of a chat.",
    "task1290_xsum_summarization": "A news article in one sentence.",
    "task181_outcome_extraction": "What a clinical trial measured.",
    "task002_quoref_answer_generation": "Answer to a question on a passage.",
    "task1510_evalution_relation_extraction": "How two words are related.",
    "task639_multi_woz_user_utterance_generation": "What a user says next.",
    "task1729_personachat_generate_next": "What a person says next.",
    "task1590_diplomacy_text_generation": "What a player of Diplomacy says next.",
    "task748_glucose_reverse_cause_event_detection": "What enables an event of a story.",
    "task511_reddit_tifu_long_text_summarization": "Summary of a post.",
    "task591_sciq_answer_generation": "Answer to a question of science.",
}

TASKS = {
    name: Instructed(Task(name, "en", score, max_new_tokens=64, description=description))
    for score, of in (("exact_match_normalized", _LABELLED), ("rouge_l", _WRITTEN))
    for name, description in of.items()
}
"""By name; 64 new tokens, where SAPT generates 50."""
