"""FOMC (Shah et al. 2023): the monetary-policy stance of a sentence, as a letter A to C."""

from mcanalysis.tasks.task import Task

TASK = Task(
    name="FOMC",
    language="en",
    score="accuracy",
    max_new_tokens=4,  # a letter, perhaps after a space or a newline
    description="Monetary-policy stance of a sentence: A dovish, B hawkish, C neutral.",
)
