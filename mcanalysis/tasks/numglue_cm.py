"""NumGLUE-cm (Mishra et al. 2022): word problems that need commonsense; now and then the answer is a word."""

from mcanalysis.tasks.task import Task

TASK = Task(
    name="NumGLUE-cm",
    language="en",
    score="number_accuracy",
    max_new_tokens=12,  # a number with its digits one by one, or a word
    description="Arithmetic that needs commonsense knowledge: a number, now and then a word.",
)
