"""NumGLUE-ds (Mishra et al. 2022): word problems that need knowledge of a science."""

from mcanalysis.tasks.task import Task

TASK = Task(
    name="NumGLUE-ds",
    language="en",
    score="number_accuracy",
    max_new_tokens=12,  # a number with its digits one by one
    description="Arithmetic that needs domain-specific knowledge: a number.",
)
