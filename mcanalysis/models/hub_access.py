"""Whether the hub can be asked for a model, found out in a few seconds instead of transformers' minutes of retries."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlsplit

from mcanalysis.errors import UserError
from mcanalysis.time_limit import answer_within

SECONDS = 6.0
"""How long the hub may take to answer one small question, all in all: looking up its name, connecting, answering."""

_REMEMBERED = 60.0  # seconds: one load asks many times, and a notebook may be online again later
_asked: dict[tuple[str, str | None, str], tuple[float, str]] = {}


def local_copy(name: str, revision: str | None = None) -> Path | None:
    """The folder that a model of the hub is to be read from because the hub does not answer; None where it does.

    Raises `UserError` where there is no copy on this machine either. None offline, too (`HF_HUB_OFFLINE`), when nobody
    would be asked anyway.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE:
        return None
    key = (name, revision, constants.ENDPOINT)
    if key not in _asked or time.monotonic() > _asked[key][0] + _REMEMBERED:
        reason = _no_answer(*key)
        _asked[key] = (time.monotonic(), reason)
    if not (reason := _asked[key][1]):
        return None
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(config, str):
        return Path(config).parent
    raise UserError(
        f"Expected a causal language model at '{name}', got no copy of it on this machine and no connection to "
        f"{urlsplit(constants.ENDPOINT).hostname} ({reason}); set --model to a folder with config.json, "
        "model.safetensors and a tokenizer."
    )


def _no_answer(name: str, revision: str | None, endpoint: str) -> str:
    """Why the hub does not answer; empty where it does, were it to say that there is no such model."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        answer_within(SECONDS, lambda: HfApi(endpoint=endpoint).model_info(name, revision=revision, timeout=SECONDS))
    except HFValidationError:  # loading says so
        return ""
    except HfHubHTTPError as error:  # a proxy before it may be all that answers
        code = error.response.status_code
        return f"the answer is error {code}" if code >= 500 else ""
    except Exception as error:  # of whatever client this version of huggingface_hub uses
        return " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return ""
