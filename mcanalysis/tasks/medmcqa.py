"""MedMCQA (Pal et al. 2022): questions of medical entrance exams, one letter A to D."""

from mcanalysis.tasks.task import Task

TASK = Task(
    name="MedMCQA",
    language="en",
    score="accuracy",
    max_new_tokens=4,  # a letter, perhaps after a space or a newline
    description="Medical entrance exam question: the letter of one of four choices.",
)
