"""MeetingBank (Hu et al. 2023): the summary of a city council's meeting transcript."""

from mcanalysis.tasks.task import Task

TASK = Task(
    name="MeetingBank",
    language="en",
    score="rouge_l",
    max_new_tokens=128,  # room for a summary of a few sentences
    description="Summary of a city council's meeting transcript.",
)
