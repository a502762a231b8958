"""Scores against the reference libraries on the same strings."""

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score

from training.evaluation.scores import (
    class_scores,
    corpus_scores,
    macro_f1,
    mean_interval,
    paired_difference,
    score_answer,
)

ANSWERS = ["the cat sat on a mat today", "hello big world we go", "completely other words stand here"]
REFERENCES = [
    ["the cat sat on the mat today", "a cat sat here on a mat"],
    ["hello big world we come"],
    ["nothing of that kind is right"],
]
STREAMS = [[some[0] for some in REFERENCES], [some[1] if len(some) > 1 else None for some in REFERENCES]]


def test_rouge_is_rouge_scores_own_of_the_best_reference() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for answer, references in zip(ANSWERS, REFERENCES, strict=True):
        found = score_answer(answer, references)
        for name in ("rouge1", "rouge2", "rougeL"):
            assert found[name] == max(scorer.score(right, answer)[name].fmeasure for right in references)


def test_chinese_answers_share_characters() -> None:
    found = score_answer("我喜欢苹果", ["我喜欢香蕉"])
    assert found["rouge1"] == found["rougeL"] == pytest.approx(3 / 5)


def test_any_reference_may_be_met_exactly() -> None:
    assert score_answer(" caf\u0065\u0301 ", ["tea", "café"])["exact_match"] == 1.0
    assert score_answer("Café", ["tea", "café"])["exact_match"] == 0.0


def test_corpus_scores_are_sacrebleus() -> None:
    found = corpus_scores(ANSWERS, REFERENCES, seed=1)
    assert found["bleu"].value == sacrebleu.corpus_bleu(ANSWERS, STREAMS).score
    assert found["chrf"].value == sacrebleu.corpus_chrf(ANSWERS, STREAMS).score
    for score in found.values():
        assert score.low is not None
        assert score.high is not None
        assert score.low < score.value < score.high
    assert corpus_scores(ANSWERS, REFERENCES, seed=1) == found


def test_there_is_no_bleu_where_no_right_answer_has_four_words() -> None:
    assert sorted(corpus_scores(["red", "blue"], [["red"], ["blue"]], seed=1)) == ["chrf"]
    assert sorted(corpus_scores(["红色的花"], [["红色的花"]], seed=1)) == ["bleu", "chrf"]


def test_chinese_corpus_scores_are_sacrebleus() -> None:
    answers, references = ["我喜欢吃红苹果。", "你好吗?"], ["我喜欢吃绿苹果。", "你还好吗?"]
    found = corpus_scores(answers, [[one] for one in references], seed=1)
    assert found["bleu"].value == sacrebleu.corpus_bleu(answers, [references], tokenize="zh").score


def test_classes_are_scored_as_scikit_learn_does() -> None:
    rights, answers = ["yes", "no", "no", "yes", "no"], [" yes", "no", "perhaps", "no", "yes"]
    scores = class_scores(answers, rights, ["no", "yes"])
    stripped = [answer.strip() for answer in answers]
    assert macro_f1(scores) == f1_score(rights, stripped, labels=["no", "yes"], average="macro")
    assert [score.support for score in scores] == [3, 2]


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    samples = [generator.normal(3.0, 1.0, size=60) for _ in range(60)]
    covered = sum(
        interval.low <= 3.0 <= interval.high for interval in (mean_interval(s, seed=1) for s in samples)
    )
    assert covered >= 50  # 57 are expected; fewer than 50 would happen once in 2,000 runs


def test_a_paired_test_tells_a_difference_from_chance() -> None:
    generator = np.random.default_rng(0)
    a = generator.normal(size=80)
    noise = generator.normal(size=80)
    _, chance = paired_difference(a, a + noise - noise.mean(), seed=1)
    better, real = paired_difference(a, a + 0.5 + 0.1 * noise, seed=1)
    assert chance > 0.5
    assert real < 0.01
    assert better.low > 0.4
    assert paired_difference(a, a, seed=1)[1] == 1.0
