"""The evaluation engine where lm-evaluation-harness measures: the engine's interface, the harness's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from torch import Tensor

from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.harness import HarnessTask
from mcanalysis.evaluation.objective import Objective
from mcanalysis.models.whole_model import WholeModel
from mcanalysis.progress import Progress, silent
from mcanalysis.store.measurements import Measurement


class HarnessEngine(Engine):
    """Measures points on objectives that are tasks of a `HarnessObjective`, or of several."""

    def measure(
        self,
        point: Mapping[str, Tensor],
        objectives: Sequence[Objective],
        progress: Progress = silent,
        desc: str = "evaluation",
    ) -> list[Measurement]:
        """Loss and score of every task at a point, in the order given."""
        of_owner: dict[Any, list[str]] = {}  # tasks cut to other numbers of examples have another
        for o in objectives:
            if isinstance(o, HarnessTask):
                of_owner.setdefault(o.owner, []).append(o.name)
        found: dict[str, Measurement] = {}
        bar = progress(total=len(objectives), desc=f"{desc} (tasks)")
        try:
            for owner, names in of_owner.items():
                found |= owner.measure(point, names).tasks
                bar.update(len(names))
        finally:
            bar.close()
        return [found[o.name] for o in objectives]

    def choices(self, objectives: Sequence[Objective]) -> dict[str, Any]:
        """How the tasks are measured, for the manifest."""
        cut = {f"{o.name}/{o.split}": o.num_cut for o in objectives if o.num_cut}
        adapter = {} if isinstance(self.model, WholeModel) else {"adapter": "unmerged"}
        return {"lm_eval": version("lm_eval"), **adapter, **({"cut_prompts": cut} if cut else {})}

    def check_room(self, objectives: Sequence[Objective]) -> None:
        """The harness cuts what is too long, which `HarnessObjective` has said."""
