"""Which layers of a base LoRA adapts: by name, all linear ones, or the attention projections of its architecture."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mcanalysis.errors import UserError

_ATTENTION_NAMES = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Mistral, Qwen, Gemma
    ("q_proj", "k_proj", "v_proj", "out_proj"),  # OPT, GPT-J, GPT-Neo
    ("q_proj", "k_proj", "v_proj", "dense"),  # Phi
    ("query_key_value", "dense"),  # GPT-NeoX, Falcon, BLOOM
    ("c_attn", "c_proj"),  # GPT-2
    ("qkv_proj", "o_proj"),  # Phi-3
    ("qkv_proj", "out_proj"),  # CodeGen
    ("Wqkv", "out_proj"),  # MPT
)


def find_target_modules(model: nn.Module, wanted: Sequence[str] | None = None) -> list[str]:
    """Full names of the linear modules to adapt, in the model's order.

    By default all attention projections, as in LLMCL, the I-LoRA paper's code. TRACE and the LoRA paper have those of
    queries and values only, QLoRA's code and TRL's guide all linear layers (`all-linear`).

    Raises `UserError` where none is found, or one of `wanted` fits no layer, naming what the model has.
    """
    decoder = getattr(model, "get_decoder", lambda: model)()  # without the eyes and ears of a multimodal model
    inside = {id(module) for module in decoder.modules()}
    linear = {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" or hasattr(module, "quant_state"))
        and module is not getattr(model, "get_output_embeddings", lambda: None)()
        and id(module) in inside
    }
    leaves = {name.rsplit(".", 1)[-1] for name in linear}
    if tuple(wanted or ()) == ("all-linear",):
        names = list(linear)
    else:
        suffixes = wanted or next((s for s in _ATTENTION_NAMES if set(s) <= leaves), ())
        names = [n for n in linear if any(n == s or n.endswith("." + s) for s in suffixes)]
        if not wanted:  # GPT-2 calls the output of its MLP c_proj, too
            names = [n for n in names if ".mlp." not in n]
        absent = [s for s in suffixes if not any(n == s or n.endswith("." + s) for n in names)]
        names = [] if absent else names
    if not names:
        raise UserError(
            f"Expected a model with LoRA-able layers ({', '.join(wanted or ('attention projections',))}), got "
            f"{type(model).__name__} with linear layers named {', '.join(sorted(leaves)) or '(none)'}; "
            "name the layers to adapt with --target-modules."
        )
    return names
