"""Where users already are: callbacks for the trainers of others, and points as models of lm-evaluation-harness.

A page about it is docs/your-own-trainer.md. The names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcanalysis.integrations.consistency import ConsistencyMixin
    from mcanalysis.integrations.forgetting import ForgettingCallback
    from mcanalysis.integrations.ilora import IloraCallback

_HOMES = {"ConsistencyMixin": "consistency", "ForgettingCallback": "forgetting", "IloraCallback": "ilora"}

__all__ = ["ConsistencyMixin", "ForgettingCallback", "IloraCallback"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
