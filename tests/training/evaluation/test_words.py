"""Words in any script, and the same as rouge-score's and sacrebleu's where these know the script."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU

from training.evaluation.words import cut_for_bleu, split_words


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_cut_as_rouge_score_does(text: str) -> None:
    assert split_words(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Il était une fois…", ["il", "était", "une", "fois"]),
        ("e\u0301te\u0301", ["été"]),
        ("我喜欢Python 3。你好", ["我", "喜", "欢", "python", "3", "你", "好"]),
        ("नमस्ते, दुनिया!", ["नमस्ते", "दुनिया"]),
        ("Привет_мир", ["привет", "мир"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("— …", []),
    ],
)
def test_words_of_other_scripts(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("text", "name"), [("Don't stop: 3.5%", "13a"), ("我喜欢苹果, 你呢?", "zh"), ("すし食べる", "char")]
)
def test_bleu_is_cut_by_sacrebleus_own_rule(text: str, name: str) -> None:
    assert cut_for_bleu(text) == BLEU(tokenize=name).tokenizer(text)
