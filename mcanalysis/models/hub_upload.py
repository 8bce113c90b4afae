"""A point on the hub: a PEFT adapter and its model card, uploaded only when this is called, and with a token only."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import save_adapter
from mcanalysis.models.hub_access import SECONDS
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.time_limit import answer_within

TAGS = ("mcanalysis", "lora", "model-merging")


def check_upload(repo: str) -> None:
    """Raise `UserError` for what is no OWNER/NAME, without a token of the hub, offline, and where it does not answer.

    Whose token it is is asked, in `hub_access.SECONDS` at most, so that nobody measures for minutes and then cannot
    upload. Whether that user may write to the repository is found out by writing.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if repo.count("/") != 1:
        raise UserError(f"Expected a repository OWNER/NAME, got '{repo}'; name both, and nothing else.")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"Expected a repository OWNER/NAME, got '{repo}' ({' '.join(str(error).split())}); correct it."
        ) from None
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"Expected the hub for '{repo}', got HF_HUB_OFFLINE; unset it to upload.")
    if not get_token():
        raise UserError(
            f"Expected a token of the hub to upload to '{repo}', got none; run `hf auth login` or set HF_TOKEN."
        )
    api = HfApi(endpoint=constants.ENDPOINT, token=get_token())
    try:
        answer_within(SECONDS, api.whoami)
    except Exception as error:  # of whatever client this version of huggingface_hub uses
        raise UserError(
            f"Expected the hub to know whose the token is, to upload to '{repo}', got: {_reason(error)}; check the "
            "token and the connection."
        ) from None


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()).rstrip(".") or type(error).__name__)[:200]


def model_card(base_name: str, text: str) -> str:
    """Return `text` below the front matter by which the hub knows an adapter and its base.

    A base that is no id of the hub (a folder, `embedded`) is left out of it, as the hub refuses such a name.

    >>> print(model_card("my/base", "# Hello").splitlines()[1])
    base_model: my/base
    """
    import yaml
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    front: dict[str, object] = {"library_name": "peft", "pipeline_tag": "text-generation", "tags": list(TAGS)}
    try:
        validate_repo_id(base_name)
        if "/" in base_name and not Path(base_name).exists():
            front = {"base_model": base_name, **front}
    except HFValidationError:
        pass
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{text}"


def push_to_hub(
    point: Mapping[str, Tensor],
    repo: str,
    base_name: str,
    card: str = "",
    *,
    rank: int | None = None,
    target_modules: Sequence[str] | None = None,
    private: bool = True,
) -> str:
    """Upload a LoRA point as a PEFT adapter with `card` as its README.md, in one commit; returns its address.

    The repository is made where it is not there, private unless told otherwise; one that is there stays as it is.

    Args:
        point: a LoRA point.
        repo: `OWNER/NAME`.
        base_name: the base, as PEFT is to look it up.
        card: Markdown; the front matter (`model_card`) is put above it.
        rank, target_modules: as of `save_adapter`.
        private: of a new repository.

    Raises:
        UserError: without a token, offline, for a name that is none, for a point that is no adapter, and where the hub
            refuses; nothing is uploaded then.
    """
    check_upload(repo)
    from huggingface_hub import HfApi, constants, get_token

    with tempfile.TemporaryDirectory() as folder:
        save_adapter(point, folder, base_name, rank, target_modules)
        write_text_atomic(Path(folder) / "README.md", model_card(base_name, card))
        api = HfApi(endpoint=constants.ENDPOINT, token=get_token())
        try:
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Adapter and card by mcanalysis")
        except Exception as error:  # of whatever client this version of huggingface_hub uses
            raise UserError(
                f"Expected to upload to '{repo}', got: {_reason(error)}; check the name, the token's rights and the "
                "connection."
            ) from None
    return str(address)
