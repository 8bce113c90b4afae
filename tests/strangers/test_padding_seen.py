"""Models whose loss or answer of an example would depend on the others of its batch: refused, or read another way."""

import json
import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mcanalysis.errors import UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.metrics.scores import get_score
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import EncodedExample, collate
from mcanalysis.models.forward import forward
from mcanalysis.models.loading import load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.positions import positions_of
from mcanalysis.tasks.trace_files import load_examples

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 128,
}  # fmt: skip
BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
BART |= {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "max_position_embeddings": 128}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 40}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [1.5, 4.0, 16.0, 32.0]}


@pytest.fixture
def folder(tmp_path, tokenizer):
    """folder("gpt2", **config) -> a folder with a random model of another architecture for the same tokenizer."""

    def make(kind, **settings):
        ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        ids["pad_token_id"] = tokenizer.pad_token_id
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ids, **settings)).float()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() >= 2:
                        parameter.normal_(0, 0.25)
        model.save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        return str(tmp_path / kind)

    return make


@pytest.mark.parametrize(
    ("kind", "settings"), [("bart", BART), ("roformer", {**SIZES, "is_decoder": True, "embedding_size": 32})]
)
def test_a_model_that_leaves_positions_or_the_mask_out_of_account_is_refused(kind, settings, folder):
    """BART's decoder counts its own positions, padding included."""
    where = folder(kind, **settings)
    model = AutoModelForCausalLM.from_pretrained(where).eval()
    short, long = EncodedExample((3, 5, 7), (4,)), EncodedExample(tuple(range(3, 11)), (4,))
    with torch.no_grad():
        alone, beside = (float(forward(model, collate(rows, 0)).nll[0]) for rows in ([short], [short, long]))
    assert abs(alone - beside) > 1e-4
    with pytest.raises(UserError, match=r"reads a row padded on the left as it does without.*choose another model"):
        load_base(where)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("opt", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
        ("qwen3", {**SIZES, "head_dim": 8}),
        ("gemma2", {**SIZES, "head_dim": 8, "sliding_window": 4}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_models_that_keep_account_of_them_are_taken(kind, settings, dtype, folder):
    assert load_base(folder(kind, **settings), dtype)[0].dtype == getattr(torch, dtype)


def _objective(file, tokenizer, score="exact_match", words=(1, 3, 8)):
    """Examples whose prompts are of several lengths."""
    rng = random.Random(0)
    known = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs"]
    rows = [
        {"prompt": " ".join(rng.choice(known) for _ in range(rng.choice(words))), "answer": " ".join(known[:3])}
        for _ in range(6)
    ]
    file.write_text(json.dumps(rows))
    return make_objective(load_examples(file, score, 6), "test", tokenizer, 128)


def _measured(base, tokenizer, where, objective, method="measure"):
    model = LoraModel.attach(base, tokenizer, LoraSettings(rank=1, target_modules=("all-linear",)), 0, where)
    engine = Engine(model)
    engine.check_room([objective])
    return getattr(engine, method)(model.base_point(), [objective])[0]


def test_positions_that_depend_on_the_longest_row_are_refused_where_they_would(folder, tmp_path):
    """Beyond Phi-3's first length a short example would get the frequencies of the longest; below it, its own."""
    where = folder("phi3", **SIZES, rope_parameters=LONG, original_max_position_embeddings=40)
    base, tokenizer = load_base(where)
    assert positions_of(base).unscaled == 40
    fits = _objective(tmp_path / "fits.json", tokenizer, words=(1, 2))
    most = max(len(e) + 6 for e in fits.encoded)
    assert most <= 40
    found = _measured(base, tokenizer, where, fits)
    fresh = AutoModelForCausalLM.from_pretrained(where).eval()
    for example, nll in zip(fits.encoded, found.nll, strict=True):
        ids = torch.tensor([example.prompt_ids + example.answer_ids])
        with torch.no_grad():
            rows = fresh(input_ids=ids).logits[0].double().log_softmax(-1)
        start = len(example.prompt_ids) - 1
        by_hand = -sum(float(rows[start + i, t]) for i, t in enumerate(example.answer_ids))
        assert nll == pytest.approx(by_hand, rel=1e-5)
    longer = _objective(tmp_path / "longer.json", tokenizer, words=(1, 30))
    assert max(len(e) for e in longer.encoded) > 40
    base, tokenizer = load_base(where)
    with pytest.raises(UserError, match="at most the 40 tokens up to which the model's positions do not depend"):
        _measured(base, tokenizer, where, longer)
    with pytest.raises(UserError, match="lower --max-length to 40"), torch.no_grad():
        forward(base, collate(longer.encoded, 0))


def test_layers_that_also_hold_a_recurrent_state_are_read_again(folder, tmp_path):
    """Of Inkling: its convolutions have read the reference answer, which keys and values alone do not undo."""
    where = folder("inkling_text", **SIZES)
    base, tokenizer = load_base(where)
    fresh = AutoModelForCausalLM.from_pretrained(where).eval()
    objective = _objective(tmp_path / "data.json", tokenizer)
    texts = []
    for example in objective.encoded:
        ids = list(example.prompt_ids)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(fresh(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                ids.pop()
                break
        texts.append(tokenizer.decode(ids[len(example.prompt_ids) :], skip_special_tokens=True).strip())
    prompts = [row["prompt"] for row in json.loads((tmp_path / "data.json").read_text())]
    rows = [{"prompt": p, "answer": f"fox {text}"} for p, text in zip(prompts, texts, strict=True)]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    own = make_objective(load_examples(tmp_path / "own.json", "rouge_l", 6), "test", tokenizer, 128)
    found = _measured(base, tokenizer, where, own)
    score = get_score("rouge_l").per_example
    expected = [score(text, row["answer"], row["prompt"]) for text, row in zip(texts, rows, strict=True)]
    assert found.scores.tolist() == pytest.approx(expected, abs=1e-6) and max(expected) > 0.5
