"""lm-evaluation-harness: `lm_eval.simple_evaluate(model=PointLM.load(…).at(point))`; see `mc.lm_eval_objective`."""

from mcanalysis.evaluation.point_lm import PointLM

__all__ = ["PointLM"]
