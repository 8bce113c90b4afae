"""Examples as tokens: padding, masks, positions, and what is cut when there is no room."""

from itertools import pairwise, product
from random import Random

import pytest
import torch

from mcanalysis.errors import DataError
from mcanalysis.models.encoding import EncodedExample, collate, cut_by_length, encode, encode_all
from mcanalysis.tasks.task import Example

SHORT = EncodedExample((5, 6), (7,))
LONG = EncodedExample((8, 9, 10, 11), (12, 13))


def test_padding_of_ids_is_the_pad_token_and_of_labels_minus_100():
    batch = collate([SHORT, LONG], padding=3)
    assert batch.input_ids.tolist() == [[3, 3, 3, 5, 6, 7], [8, 9, 10, 11, 12, 13]]
    assert batch.labels.tolist() == [[-100] * 5 + [7], [-100] * 4 + [12, 13]]


def test_a_batch_is_of_whole_numbers_that_lie_row_by_row():
    batch = collate([SHORT, LONG, EncodedExample((1,), (2, 3))], padding=3)
    for part in (batch.input_ids, batch.labels, batch.attention_mask, batch.position_ids):
        assert part.dtype == torch.int64 and part.is_contiguous()
    assert batch.position_ids.tolist() == [[0, 0, 0, 0, 1, 2], [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 2]]
    assert collate([SHORT, SHORT], padding=3).attention_mask is None


def test_attention_mask_hides_the_padding_and_nothing_else():
    batch = collate([SHORT, LONG], padding=3)
    assert batch.attention_mask.tolist() == [[0, 0, 0, 1, 1, 1], [1] * 6]
    assert batch.mask().tolist() == batch.attention_mask.tolist()


def test_a_pad_id_that_also_occurs_in_the_text_stays_visible():
    batch = collate([EncodedExample((3, 3), (3,)), LONG], padding=3)
    assert batch.attention_mask[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.labels[0].tolist() == [-100] * 5 + [3]


def test_positions_count_from_the_first_real_token():
    batch = collate([SHORT, LONG], padding=3)
    assert batch.position_ids[0, 3:].tolist() == [0, 1, 2]
    assert batch.position_ids[1].tolist() == [0, 1, 2, 3, 4, 5]


def test_answers_end_in_the_last_column_and_are_counted():
    batch = collate([SHORT, LONG], padding=3)
    assert batch.num_answer_columns == 2
    assert batch.input_ids[:, -1].tolist() == [7, 13]


def test_prompts_alone_carry_no_answer_token():
    batch = collate([EncodedExample(e.prompt_ids, ()) for e in (SHORT, LONG)], padding=3)
    assert batch.input_ids.tolist() == [[3, 3, 5, 6], [8, 9, 10, 11]]
    assert bool((batch.labels == -100).all())


def test_moving_a_batch_keeps_every_part():
    batch = collate([SHORT, LONG], padding=3)
    moved = batch.to("cpu")
    for name in ("input_ids", "labels", "attention_mask", "position_ids"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))


def test_an_answer_ends_with_the_end_token_and_the_prompt_does_not(tokenizer):
    encoded, cut = encode(Example("apple river:", "seven"), tokenizer, 64)
    assert not cut
    assert tokenizer.decode(encoded.prompt_ids) == "apple river:"
    assert tokenizer.decode(encoded.answer_ids[:-1]) == "seven"
    assert encoded.answer_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in encoded.prompt_ids


@pytest.mark.parametrize("max_length", [12, 13, 20, 21])
def test_a_long_example_loses_the_middle_of_its_prompt_and_no_answer_token(tokenizer, max_length):
    example = Example("HEAD " + "river " * 60 + "TAIL", "green stone")
    whole, _ = encode(example, tokenizer, 10_000)
    encoded, cut = encode(example, tokenizer, max_length)
    assert cut
    assert len(encoded) == max_length
    assert encoded.answer_ids == whole.answer_ids
    kept = len(encoded.prompt_ids)
    head, tail = kept - kept // 2, kept // 2
    assert encoded.prompt_ids == whole.prompt_ids[:head] + whole.prompt_ids[len(whole.prompt_ids) - tail :]


def test_a_prompt_that_just_fits_is_not_cut(tokenizer):
    example = Example("apple river green", "stone")
    whole, _ = encode(example, tokenizer, 10_000)
    assert encode(example, tokenizer, len(whole)) == (whole, False)
    shorter, cut = encode(example, tokenizer, len(whole) - 1)
    assert cut
    assert len(shorter) == len(whole) - 1


def test_an_answer_that_does_not_fit_is_an_error_and_never_cut(tokenizer):
    with pytest.raises(DataError, match="max-length"):
        encode(Example("apple", "river " * 30), tokenizer, 16)


def test_an_empty_prompt_is_refused(tokenizer):
    # Nothing would predict the answer's first token: padding would, or the batch would have a column too few.
    with pytest.raises(DataError, match="prompt"):
        encode(Example("", "river"), tokenizer, 16)


def test_none_is_dropped_and_the_cut_ones_are_counted(tokenizer):
    examples = [Example("river " * n, "green") for n in range(1, 41)]
    encoded, num_cut = encode_all(examples, tokenizer, 40)
    assert len(encoded) == len(examples)
    lengths = [len(encode(e, tokenizer, 10_000)[0]) for e in examples]
    assert num_cut == sum(n > 40 for n in lengths)
    assert 0 < num_cut < len(examples)


@pytest.mark.parametrize("seed", range(30))
def test_groups_of_like_length_have_the_fewest_padded_tokens_of_all(seed, monkeypatch):
    """Against every way to cut the sorted lengths, a group costing as much as some tokens."""
    rng = Random(seed)
    lengths = [rng.randint(1, 60) for _ in range(rng.randint(1, 8))]
    budget, of_a_group = rng.randint(1, 200), rng.choice([1, 10, 40])
    monkeypatch.setattr("mcanalysis.models.encoding.GROUP_TOKENS", of_a_group)

    def cost(groups):
        return sum(max(group) * len(group) + of_a_group for group in groups)

    ordered = sorted(lengths)
    ways = []
    for between in product([False, True], repeat=len(lengths) - 1):
        ends = [i for i, cut in enumerate(between, start=1) if cut]
        groups = [ordered[i:j] for i, j in pairwise([0, *ends, len(lengths)])]
        if all(max(group) * len(group) <= budget or len(group) == 1 for group in groups):
            ways.append(cost(groups))
    found = cut_by_length(lengths, budget)
    assert sorted(i for group in found for i in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget for group in found)
    assert cost([[lengths[i] for i in group] for group in found]) == min(ways)
