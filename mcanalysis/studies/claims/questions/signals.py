"""(f) What predicts forgetting, barrier and gain?"""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.studies.claims.evidence import Answer, Question, interval, records, rows
from mcanalysis.studies.claims.pieces import Found
from mcanalysis.studies.claims.questions.gain import over_the_end_of_eval

NOTE = (
    "Clustered by pair. Outcomes: straight path between factors, `gain` over the end that eval prefers. `p_holm` is "
    "over the signals of an outcome and `over`: what is asked first is forgetting within strategies (`signals`), other "
    "outcomes beside it are corrected each for itself. `signals_out_of_run`: a pair predicted from the others; "
    "`beyond_means` is what is told beyond the mean of all other pairs or that of the strategy's, whichever tells more."
)


def answer(found: Sequence[Found]) -> Answer:
    """Spearman's ρ of each signal with each outcome, clustered by pair, and the prediction of a pair from the others.

    The path is the straight one between factors, the barrier the mean over all tasks.
    """
    from mcanalysis.studies.predictors import tables_of

    table = rows(found, "signals")
    keys = ["strategy", "pair", "start", "end"]
    gains = over_the_end_of_eval(found)
    gains = gains[(gains.path == "linear") & (gains.space == "factor")]
    table = table.drop(columns="gain").merge(gains[[*keys, "gain"]], on=keys, how="left", validate="one_to_one")
    lacking = [name for name in table if table[name].isna().all()]
    tables = tables_of(table.drop(columns=lacking), table.pair.to_list())
    table = tables["predictor_correlations"]
    table = table[table.over.isin(["all", "within strategies"])]
    table = table.drop(columns="needs_old_data").rename(columns={"rho": "mean"})
    first = table[(table.outcome == "forgetting") & (table.over == "within strategies")]
    best = first.reindex(first["mean"].abs().sort_values(ascending=False).index)[:3]
    words = [
        f"{row['signal']}, forgetting, within strategies: ρ {interval(row, 2)}, p {row['p_holm']:.2g} after Holm"
        for row in records(best)
    ]
    out = tables["predictor_out_of_run"]
    words += [
        f"{row['signals']}, forgetting out of pair: R² {row['r2']:.2f} [{row['r2_low']:.2f}, {row['r2_high']:.2f}], "
        f"beyond means {row['beyond_means']:+.2f} [{row['beyond_means_low']:+.2f}, "
        f"{row['beyond_means_high']:+.2f}], p {row['p_holm']:.2g} after Holm"
        for row in records(out[(out.outcome == "forgetting") & out.signals.isin(["all signals", "without old data"])])
    ]
    return Answer({"signals": first, "signals_all": table, "signals_out_of_run": out},
                  "Spearman's ρ with the forgetting of the loss, within strategies", words,
                  NOTE + (f" No run has {', '.join(map(str, lacking))}." if lacking else ""))  # fmt: skip


QUESTION = Question("f", "signals", "Which signals predict forgetting, barrier and gain?", answer, "signals")
