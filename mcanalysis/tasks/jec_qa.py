"""JEC-QA (Zhong et al. 2020): questions of the Chinese judicial examination, one letter A to D."""

from mcanalysis.tasks.task import Task

TASK = Task(
    name="JEC-QA",
    language="zh",
    score="accuracy",
    max_new_tokens=4,  # a letter, perhaps after a space or a newline
    description="Chinese judicial exam question: the letter of one of four choices.",
)
