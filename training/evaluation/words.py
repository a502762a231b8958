"""What a word is, in any script: the tokens of ROUGE, and how a text is cut for BLEU."""

import unicodedata

from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU

# Scripts written without spaces: a character counts as a word. By the beginning of its Unicode name.
WITHOUT_SPACES = (
    "CJK UNIFIED",
    "CJK COMPATIBILITY IDEO",
    "HIRAGANA",
    "KATAKANA",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
)
HAN = ("CJK UNIFIED", "CJK COMPATIBILITY IDEO")


def stands_alone(character: str, scripts: tuple[str, ...] = WITHOUT_SPACES) -> bool:
    """Tell whether a character belongs to one of `scripts`."""
    return not character.isascii() and unicodedata.name(character, "").startswith(scripts)


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits; single characters where no spaces are.

    For ASCII they are those of rouge-score's own tokenizer without stemming.
    """
    words = [""]
    for character in unicodedata.normalize("NFC", text).lower():
        kind = unicodedata.category(character)[0]
        if kind == "M" and words[-1]:
            words[-1] += character  # a vowel sign or accent belongs to the letter before it
        elif kind in "LN":
            alone = stands_alone(character)
            if alone or (words[-1] and stands_alone(words[-1][0])):
                words.append("")
            words[-1] += character
        elif words[-1]:
            words.append("")
    return [word for word in words if word]


class WordTokenizer(Tokenizer):  # type: ignore[misc]
    """`split_words` as rouge-score wants it."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return split_words(text)


_CUTTERS = {name: BLEU(tokenize=name).tokenizer for name in ("13a", "zh", "char")}


def cut_for_bleu(text: str) -> str:
    """Return a text with spaces between its tokens, as sacrebleu cuts one of this script.

    `zh` where there is Han without kana, `char` for other scripts without spaces, else `13a`.
    """
    alone = [character for character in text if stands_alone(character)]
    if not alone:
        return str(_CUTTERS["13a"](text))
    han = all(stands_alone(character, HAN) for character in alone)
    return str(_CUTTERS["zh" if han else "char"](text))
