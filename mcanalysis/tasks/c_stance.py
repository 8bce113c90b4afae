"""C-STANCE (Zhao et al. 2023): the stance of a Chinese post towards a target, as a letter A to C."""

from mcanalysis.tasks.task import Task

TASK = Task(
    name="C-STANCE",
    language="zh",
    score="accuracy",
    max_new_tokens=4,  # a letter, perhaps after a space or a newline
    description="Stance of a Chinese post towards a target: A for, B against, C neutral.",
)
