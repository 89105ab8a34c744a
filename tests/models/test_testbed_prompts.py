from __future__ import annotations

from collections import Counter

import pytest
import torch

from fisopt.errors import InputError
from fisopt.models.testbed import (
    Prompt,
    all_prompts,
    encode_prompts,
    null_embeddings,
    parse_prompt,
    sample_prompts,
)

TEXT = "red circle moving left fast over waves"


def test_parse_and_print_are_inverse_for_every_prompt() -> None:
    prompts = list(all_prompts())
    assert len(set(prompts)) == len(prompts) == 6 * 3 * 4 * 2 * 5
    assert all(parse_prompt(str(prompt)) == prompt for prompt in prompts)
    assert all(Prompt.from_indices(prompt.indices()) == prompt for prompt in prompts)


def test_case_and_spaces_do_not_matter() -> None:
    assert parse_prompt("  Red CIRCLE moving  left fast over waves ") == parse_prompt(TEXT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rad circle moving left fast over waves", "word 1 .*'rad' as colour.*mean red"),
        ("red circel moving left fast over waves", "word 2 .*'circel' as shape.*mean circle"),
        ("red circle going left fast over waves", "word 3 .*'going', wanted 'moving'"),
        ("red circle moving left fast over zebras", "'zebras' as background, wanted one of plain"),
        ("red circle", "got 2 words .*wanted 7"),
        ("", "got 0 words"),
    ],
)
def test_bad_text_says_where_and_what_was_wanted(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_prompt(text)


def test_a_prompt_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="got int"):
        parse_prompt(3)


def test_a_prompt_of_unknown_words_cannot_be_built() -> None:
    with pytest.raises(InputError, match="'pink' as colour"):
        Prompt("pink", "circle", "left", "fast", "waves")


def test_samples_are_even_and_repeatable() -> None:
    prompts = sample_prompts(64, seed=1)
    assert prompts == sample_prompts(64, seed=1) != sample_prompts(64, seed=2)
    for slot in ("colour", "shape", "direction", "speed", "background"):
        counts = Counter(getattr(prompt, slot) for prompt in prompts)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert sample_prompts(0) == []


def test_a_negative_sample_count_is_refused() -> None:
    with pytest.raises(InputError, match="count=-1"):
        sample_prompts(-1)


def test_words_are_orthogonal_and_the_null_word_is_none_of_them() -> None:
    vectors = encode_prompts(list(all_prompts())).flatten(0, 1).unique(dim=0)
    vectors = torch.cat([vectors, null_embeddings(1)[0, :1]])
    assert len(vectors) == 6 + 3 + 4 + 2 + 5 + 1
    gram = vectors @ vectors.T
    assert torch.equal(gram, gram.diag().diag())
