"""The fifteen tasks of the long sequence of Progressive Prompts (Razdaibiedina et al. 2023, arXiv 2301.12314).

Instructions, options and the form of the texts are those of O-LoRA's files (github.com/cmnfriend/O-LoRA, commit
07117e1); the data sets' names, columns and classes on the hub are as public code uses them, not seen loaded here.
"""

from __future__ import annotations

from mcanalysis.tasks.published.labelled import Labelled
from mcanalysis.tasks.task import Task

_SENTIMENT = "What is the sentiment of the following paragraph? Choose one from the option.\n"
_TOPIC = "What is the topic of the following paragraph? Choose one from the option.\n"
_NLI = 'What is the logical relationship between the "sentence 1" and the "sentence 2"? Choose one from the option.\n'
_STARS = ("very negative", "negative", "neutral", "positive", "very positive")
_SENTENCES = "sentence 1: {sentence1}\nsentence 2: {sentence2}"
_PREMISE = "sentence 1: {premise}\nsentence 2: {hypothesis}"


def _task(name: str, description: str) -> Task:
    """Answers are a few words; what differs in case or in spaces only is right, as in O-LoRA's own score."""
    return Task(name, "en", "exact_match_normalized", max_new_tokens=16, description=description)


TASKS = {
    data.task.name: data
    for data in (
        Labelled(
            _task("dbpedia", "Kind of thing that an article is about, of 14."),
            "fancyzhx/dbpedia_14",
            {
                "Company": "Company", "EducationalInstitution": "Educational Institution", "Artist": "Artist",
                "Athlete": "Athlete", "OfficeHolder": "Office Holder",
                "MeanOfTransportation": "Mean of Transportation", "Building": "Building",
                "NaturalPlace": "Natural Place", "Village": "Village", "Animal": "Animal", "Plant": "Plant",
                "Album": "Album", "Film": "Film", "WrittenWork": "Written Work",
            },
            "Title: {title}\nText: {content}\n",
            _TOPIC,
        ),
        Labelled(
            _task("amazon", "Stars of a review, 1 to 5, in words."),
            "yassiracharki/Amazon_Reviews_for_Sentiment_Analysis_fine_grained_5_classes",
            {f"{n} star{'s' * (n > 1)}": word for n, word in enumerate(_STARS, start=1)},
            "Title: {review_title}\nText: {review_text}\n",
            _SENTIMENT,
            label="class_index",
            first=1,
        ),
        Labelled(
            _task("yahoo", "Topic of a question with its answer, of 10."),
            "community-datasets/yahoo_answers_topics",
            {name: name for name in (
                "Society & Culture", "Science & Mathematics", "Health", "Education & Reference",
                "Computers & Internet", "Sports", "Business & Finance", "Entertainment & Music",
                "Family & Relationships", "Politics & Government",
            )},
            "Title: {question_title}\nQuestion: {question_content}\nAnswer: {best_answer}\n",
            _TOPIC,
            label="topic",
        ),
        Labelled(
            _task("agnews", "Topic of a news item, of 4."),
            "fancyzhx/ag_news",
            {"World": "World", "Sports": "Sports", "Business": "Business", "Sci/Tech": "Science or Technology"},
            "Text: {text}\n",
            _TOPIC,
            folders=("ag_news", "ag"),
        ),
        Labelled(
            _task("yelp", "Stars of a review, 1 to 5, in words."),
            "Yelp/yelp_review_full",
            {"1 star": _STARS[0]} | {f"{n} stars": _STARS[n - 1] for n in range(2, 6)},
            "Text: {text}\n",
            _SENTIMENT,
        ),
        Labelled(
            _task("mnli", "Whether a sentence follows from another, contradicts it, or neither."),
            "nyu-mll/glue",
            {"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction"},
            _PREMISE,
            _NLI,
            ("neutral", "entailment", "contradiction"),
            config="mnli",
            test="validation_matched",
        ),
        Labelled(
            _task("cb", "Whether a sentence follows from another, contradicts it, or neither."),
            "aps/super_glue",
            {"entailment": "entailment", "contradiction": "contradiction", "neutral": "neutral"},
            _PREMISE,
            _NLI,
            config="cb",
            test="validation",
        ),
        Labelled(
            _task("wic", "Whether a word means the same in two sentences."),
            "aps/super_glue",
            {"False": "False", "True": "True"},
            "word: {word}\n{sentence1}\n{sentence2}",
            "Given a word and two sentences, whether the word is used with the same sense in both sentence? "
            "Choose one from the option.\n",
            ("True", "False"),
            config="wic",
            test="validation",
        ),
        Labelled(
            _task("copa", "Which of two sentences, A or B, is the cause or the effect."),
            "aps/super_glue",
            {"choice1": "A", "choice2": "B"},
            'Which sentence is the {question} of "{premise}"? Choose one between A and B.\n'
            "A: {choice1}\nB: {choice2}",
            options=(),
            config="copa",
            test="validation",
        ),
        Labelled(
            _task("qqp", "Whether two questions ask the same."),
            "nyu-mll/glue",
            {"not_duplicate": "False", "duplicate": "True"},
            "first sentence: {question1}\nsecond sentence: {question2}",
            'Whether the "first sentence" and the "second sentence" have the same meaning? '
            "Choose one from the option.\n",
            config="qqp",
            test="validation",
        ),
        Labelled(
            _task("boolq", "Whether what a question asks is so, by a passage."),
            "aps/super_glue",
            {"False": "False", "True": "True"},
            "question: {question}\npassage: {passage}",
            "According to the following passage, is the question true or false? Choose one from the option.\n",
            ("True", "False"),
            config="boolq",
            test="validation",
            folders=("BoolQA",),
        ),
        Labelled(
            _task("rte", "Whether a sentence follows from another."),
            "nyu-mll/glue",
            {"entailment": "entailment", "not_entailment": "contradiction"},
            _SENTENCES,
            _NLI,
            ("contradiction", "entailment"),
            config="rte",
            test="validation",
        ),
        Labelled(
            _task("imdb", "Whether a review of a film is good or bad."),
            "stanfordnlp/imdb",
            {"neg": "Bad", "pos": "Good"},
            "{text}",
            _SENTIMENT,
            ("Good", "Bad"),
        ),
        Labelled(
            _task("sst2", "Whether a sentence about a film is good or bad."),
            "nyu-mll/glue",
            {"negative": "Bad", "positive": "Good"},
            "Text: {sentence}",
            _SENTIMENT,
            ("Good", "Bad"),
            config="sst2",
            test="validation",
            folders=("SST-2",),
        ),
        Labelled(
            _task("multirc", "Whether an answer to a question on a paragraph is right."),
            "aps/super_glue",
            {"False": "False", "True": "True"},
            "paragraph: {paragraph}\nquestion: {question}\ncandidate answer: {answer}",
            "According to the following passage and question, is the candidate answer true or false? "
            "Choose one from the option.\n",
            config="multirc",
            test="validation",
        ),
    )
}  # fmt: skip
"""By name, as SAPT and others call them."""
