"""(e) Does I-LoRA beat replay and the others, and which part of it does?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mcanalysis.studies.claims.evidence import Answer, Question, interval, over_pairs, records
from mcanalysis.studies.claims.pieces import Found

OF_OTHER_KIND = ("joint", "individual", "zero_shot", "mc_sgd")
"""Bounds, and what trains twice as many steps: compared, but no rivals that others are corrected for."""

NONE = pd.DataFrame(columns=["pair", "comparison", "difference"])


def scores(found: Sequence[Found]) -> pd.DataFrame:
    """Average accuracy of every learner of every piece, `learner` "answers" for the one whose scores count."""
    table = []
    for piece in found:
        learners = {name: of["average_accuracy"] for name, of in piece.run.metrics["learners"].items()}
        learners["answers"] = learners[piece.run.answering_learner]
        table += [piece.labels | {"learner": name, "accuracy": value} for name, value in learners.items()]
    table = pd.DataFrame(table)
    return table.assign(accuracy=table.accuracy.astype(float))


def differences(table: pd.DataFrame, one: pd.Series, other: pd.Series, name: str) -> pd.DataFrame:
    """Rows of `one` minus those of `other` at the same pair, called `name`."""
    both = table[one].merge(table[other], on="pair", suffixes=("", "_other"))
    return both.assign(difference=both.accuracy - both.accuracy_other, comparison=name)[
        ["pair", "comparison", "difference"]
    ]


def answer(found: Sequence[Found]) -> Answer:
    """Average accuracy at the end on the test split; I-LoRA minus others, its parts minus it, by size of the memory."""
    table = scores(found)
    main, answers = table.part.isin(["main", "others"]), table.learner == "answers"
    means = over_pairs(table[main & answers], "accuracy", ["strategy"], tested=False).sort_values(
        "mean", ascending=False
    )
    ilora = main & (table.strategy == "ilora")

    def against(part: str, names: Sequence[str]) -> pd.DataFrame:
        """I-LoRA minus each of them, at the same pairs."""
        own = answers & (table.strategy == "ilora") & (table.part == ("real" if part == "real" else "main"))
        gaps = [
            differences(table, own, answers & (table.part == part) & (table.strategy == name), f"I-LoRA − {name}")
            for name in names
        ]
        return over_pairs(pd.concat(gaps) if gaps else NONE, "difference", ["comparison"])

    named = {part: list(dict.fromkeys(of.strategy)) for part, of in table.groupby("part", sort=False)}
    first = against("main", [name for name in named.get("main", ()) if name != "ilora"])
    changed = [
        differences(table, (table.part == "ilora") & answers & (table.label == label), ilora & answers, name)
        for label, name in (
            ("no-consistency", "average alone − both"), ("product", "average of products − of factors"),
            ("reset", "slow reset at each task − persists"),
        )
    ]  # fmt: skip
    changed.append(differences(table, ilora & (table.learner == "fast"), ilora & answers, "consistency alone − both"))
    replay = main & answers & (table.strategy == "er")
    alone = (table.part == "ilora") & answers & (table.label == "no-consistency")
    changed.append(differences(table, alone, replay, "average alone − replay"))
    changed.append(differences(table, ilora & (table.learner == "fast"), replay, "consistency alone − replay"))
    fast = (table.part == "ilora") & (table.learner == "fast") & (table.label == "no-consistency")
    changed.append(differences(table, alone, fast, "average alone: slow − fast of the same run"))
    others = over_pairs(pd.concat(changed), "difference", ["comparison"])
    sizes = table[answers & (table.part == "memory")].assign(size=lambda t: t.label.str[6:].astype(int))
    usual = table[answers & main & table.strategy.isin(["er", "ilora"]) & table.pair.isin(sizes.pair)]
    sizes = pd.concat([sizes, usual.assign(size=100)]).sort_values("size", kind="stable")
    by_size = over_pairs(sizes, "accuracy", ["strategy", "size"], tested=False)
    tables = {
        "methods": first, "methods_scores": means, "methods_parts": others, "methods_memory": by_size,
    }  # fmt: skip
    others_of = named.get("others", [])
    apart = {
        "methods_others": ("others", [name for name in others_of if name not in OF_OTHER_KIND]),
        "methods_bounds": ("others", [name for name in others_of if name in OF_OTHER_KIND]),
        "methods_real": ("real", [name for name in named.get("real", ()) if name != "ilora"]),
    }
    tables |= {name: against(part, names) for name, (part, names) in apart.items() if names}
    wide = sizes.pivot_table(index=["pair", "size"], columns="strategy", values="accuracy")
    if {"er", "ilora"} <= set(wide):
        gap = (wide["ilora"] - wide["er"]).rename("difference").reset_index()
        tables["methods_memory_gap"] = over_pairs(gap, "difference", ["size"])
    words = [
        f"{row['comparison']}: {interval(row)}, {row['pairs']} pairs, p {row['p_holm']:.2g} after Holm"
        for row in records(first)
    ]
    words += [
        f"SmolLM2, {row['comparison']}: {interval(row)}, {row['pairs']} pairs, p {row['p_holm']:.2g} after Holm"
        for row in records(tables.get("methods_real", NONE))
    ]
    note = (
        "`methods_scores` has strategies at 15 pairs beside others at four, unpaired; `methods_others` is paired, and "
        "four pairs tell large differences alone. `methods_bounds`: what is no rival, bounds and one that trains twice "
        "as many steps. In `methods_parts` replay and I-LoRA each have the learning rate that the search chose."
    )
    return Answer(tables, "difference of average accuracy", words, note)


QUESTION = Question("e", "methods", "Does I-LoRA beat replay and the best other method, by how much, and which part of "
                    "it does?", answer, None)  # fmt: skip
