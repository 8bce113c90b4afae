"""Py150 (Raychev et al. 2016, as CodeXGLUE and TRACE use it): the next line of a Python file, literals masked."""

from mcanalysis.tasks.task import Task

TASK = Task(
    name="Py150",
    language="en",
    score="edit_similarity",
    max_new_tokens=96,  # a long line of code, whose masked literals take several tokens each
    description="The next line of a Python file whose rare literals are masked.",
)
