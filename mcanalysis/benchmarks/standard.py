"""The "standard CL benchmark": text classification on AG News, Amazon, DBpedia and Yahoo; Yelp can be named, too.

The five data sets are those of Zhang et al. (2015). Orders 1 to 3 are those of Progressive Prompts and O-LoRA for
models that write their answers; none of them has Yelp.
"""

from mcanalysis.benchmarks.published import published_benchmark
from mcanalysis.tasks.published.classification import TASKS

BENCHMARK = published_benchmark(
    "standard",
    TASKS,
    {
        "order1": ("dbpedia", "amazon", "yahoo", "agnews"),
        "order2": ("dbpedia", "amazon", "agnews", "yahoo"),
        "order3": ("yahoo", "amazon", "agnews", "dbpedia"),
    },
    extra=("yelp",),
)
