"""The long sequence of Progressive Prompts (Razdaibiedina et al. 2023, arXiv 2301.12314), as O-LoRA and SAPT use it.

The standard five, four tasks of GLUE, five of SuperGLUE, and IMDB; orders 4 to 6 of the papers.
"""

from mcanalysis.benchmarks.published import published_benchmark
from mcanalysis.tasks.published.classification import TASKS

BENCHMARK = published_benchmark(
    "long",
    TASKS,
    {
        "order4": (
            "mnli", "cb", "wic", "copa", "qqp", "boolq", "rte", "imdb", "yelp", "amazon", "sst2", "dbpedia", "agnews",
            "multirc", "yahoo",
        ),
        "order5": (
            "multirc", "boolq", "wic", "mnli", "cb", "copa", "qqp", "rte", "imdb", "sst2", "dbpedia", "agnews", "yelp",
            "amazon", "yahoo",
        ),
        "order6": (
            "yelp", "amazon", "mnli", "cb", "copa", "qqp", "rte", "imdb", "sst2", "dbpedia", "agnews", "yahoo",
            "multirc", "boolq", "wic",
        ),
    },
)  # fmt: skip
