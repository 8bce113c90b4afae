"""ScienceQA (Lu et al. 2022), text only: a letter, a newline, then an explanation; the letter is scored."""

from mcanalysis.tasks.task import Task

TASK = Task(
    name="ScienceQA",
    language="en",
    score="accuracy",
    max_new_tokens=8,  # enough for the letter; the explanation that follows is trained on but not scored
    description="School science question: the letter of a choice, then the reason.",
)
