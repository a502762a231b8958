"""Scores of answers against all their references, with bootstrap confidence intervals.

The arithmetic is that of the reference libraries (rouge-score, sacrebleu, scikit-learn); what is ours is what a word
is (words.py), and that several right answers count as the best of them.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import precision_recall_fscore_support

from training.evaluation.words import WordTokenizer, cut_for_bleu

RESAMPLES = 1000
ROUGE = ("rouge1", "rouge2", "rougeL")
BLEU_WORDS = 4  # in a row, at most
# So many resampled values are held at once.
MOST_RESAMPLED = 2_000_000
_ROUGE_SCORER = RougeScorer(list(ROUGE), tokenizer=WordTokenizer())


@dataclass(frozen=True, slots=True)
class Interval:
    """A score and its 95 % bootstrap confidence interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How well one class is told: precision, recall and their harmonic mean; support: how many answers are of it."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


def normalise(text: str) -> str:
    """Return a text as it is compared: NFC, without white space around it."""
    return unicodedata.normalize("NFC", text).strip()


def score_answer(answer: str, references: Sequence[str]) -> dict[str, float]:
    """Return `exact_match` (0 or 1) and the F measures of `rouge1`, `rouge2`, `rougeL`, each of the best reference."""
    exact = normalise(answer) in {normalise(reference) for reference in references}
    rouge = _ROUGE_SCORER.score_multi(list(references), answer)
    return {"exact_match": float(exact)} | {name: rouge[name].fmeasure for name in ROUGE}


def mean_interval(values: Sequence[float] | NDArray[np.float64], *, seed: int) -> Interval:
    """Return the mean of values [N], and the interval of the means of resampled ones."""
    found = np.asarray(values, dtype=np.float64)
    return ratio_interval(found, np.ones_like(found), seed=seed)


def ratio_interval(
    sums: Sequence[float] | NDArray[np.float64], counts: Sequence[float] | NDArray[np.float64], *, seed: int
) -> Interval:
    """Return Σ sums / Σ counts over documents [N], and its interval when documents are resampled."""
    above, below = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    generator = np.random.default_rng(seed)
    ratios = []
    at_a_time = max(1, MOST_RESAMPLED // len(above))
    for start in range(0, RESAMPLES, at_a_time):
        drawn = generator.integers(len(above), size=(min(at_a_time, RESAMPLES - start), len(above)))
        ratios.append(above[drawn].sum(1) / below[drawn].sum(1))
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    return Interval(float(above.sum() / below.sum()), float(low), float(high))


def corpus_scores(
    answers: Sequence[str], references: Sequence[Sequence[str]], *, seed: int
) -> dict[str, Interval]:
    """Return `bleu` and `chrf` (0 to 100) of answers [N] with the references of each, as many as there are.

    There is no `bleu` where no reference has four words: it counts four in a row, and right answers would score 0.
    """
    cut_references = [[cut_for_bleu(reference) for reference in some] for some in references]
    found = {"chrf": _corpus_interval(CHRF(), answers, references, seed=seed)}
    if any(len(reference.split()) >= BLEU_WORDS for some in cut_references for reference in some):
        cut = [cut_for_bleu(answer) for answer in answers]
        found["bleu"] = _corpus_interval(BLEU(tokenize="none", force=True), cut, cut_references, seed=seed)
    return found


def _corpus_interval(
    metric: BLEU | CHRF, answers: Sequence[str], references: Sequence[Sequence[str]], *, seed: int
) -> Interval:
    """Return a metric of sacrebleu's with its interval, from the counts of n-grams that it keeps of each answer.

    Its own `n_bootstrap` fails on chrF where a resampled corpus scores 0 (2.6.0), and has no seed to give.
    """
    streams = _streams(references)
    counts = np.array(metric._extract_corpus_statistics(answers, streams), dtype=np.int64)
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(len(counts), size=len(counts)) for _ in range(RESAMPLES)]
    scores = [float(metric._compute_score_from_stats(counts[rows].sum(0).tolist()).score) for rows in drawn]
    low, high = np.percentile(scores, [2.5, 97.5])
    return Interval(float(metric.corpus_score(answers, streams).score), float(low), float(high))


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Return sacrebleu's streams: the first reference of every answer, the second, …; None where there is none."""
    most = max(map(len, references))
    return [[some[n] if n < len(some) else None for some in references] for n in range(most)]


def class_scores(answers: Sequence[str], rights: Sequence[str], classes: Sequence[str]) -> list[ClassScore]:
    """Return the scores of each class; an answer that is no class is wrong and counts for none of them."""
    named = list(classes)
    precision, recall, f1, support = precision_recall_fscore_support(
        [normalise(right) for right in rights],
        [normalise(answer) for answer in answers],
        labels=named,
        zero_division=0.0,
    )
    return [
        ClassScore(*found)
        for found in zip(
            named, precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True
        )
    ]


def macro_f1(scores: Sequence[ClassScore]) -> float:
    """Return the mean F1 of the classes that occur."""
    return float(np.mean([score.f1 for score in scores if score.support]))


def paired_difference(a: Sequence[float], b: Sequence[float], *, seed: int) -> tuple[Interval, float]:
    """Return the mean of b - a with its interval, and the two-sided p of a paired permutation test.

    The test turns the sign of each difference at random and counts means at least as far from 0 (with one added to
    either count, so that p is never 0).
    """
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    generator = np.random.default_rng(seed)
    seen = abs(differences.mean())
    as_far = 0
    for _ in range(RESAMPLES):
        signs = generator.integers(0, 2, size=len(differences)) * 2 - 1
        as_far += abs((differences * signs).mean()) >= seen - 1e-12
    return mean_interval(differences, seed=seed), (int(as_far) + 1) / (RESAMPLES + 1)
