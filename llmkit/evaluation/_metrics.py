"""Text metrics as pure functions: an answer and its reference -> what the pair adds to the metric."""

from __future__ import annotations

import importlib
import importlib.util
import re
import string
from collections import Counter
from functools import cache
from types import ModuleType
from typing import Any

from llmkit.errors import SetupError

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def require(module: str, package: str, needed_by: str) -> ModuleType:
    """Import an optional `module`; raise SetupError with the pip command of its `package` where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SetupError(
            f"evaluation `{needed_by}` needs the package {package}, which can't be imported: {error}",
            remedy=f"pip install {package}",
        ) from error


def require_installed(module: str, package: str, needed_by: str) -> None:
    """Raise SetupError with the pip command of `package` where `module` is not installed; imports nothing."""
    if importlib.util.find_spec(module) is None:
        raise SetupError(
            f"evaluation `{needed_by}` needs the package {package}, which is not installed",
            remedy=f"pip install {package}",
        )


def exact_match(answer: str, reference: str) -> float:
    """Return 1 if both are equal after strip(), else 0."""
    return float(answer.strip() == reference.strip())


def accuracy(answer: str, reference: str) -> float:
    """Return 1 if both have the same label, else 0.

    A label is the first line of the stripped text, stripped again and case-folded.
    """
    return float(_label(answer) == _label(reference))


def f1(answer: str, reference: str) -> float:
    """Return the token overlap F1 of SQuAD, 0..1 (Rajpurkar et al. 2016, section 6.1).

    Texts are lower-cased, stripped of ASCII punctuation and of the articles a, an, the, and split at white space.
    Where either side is then empty, F1 is 1 if both are and 0 otherwise (evaluation script of SQuAD 2.0).
    """
    found, wanted = _squad_tokens(answer), _squad_tokens(reference)
    if not found or not wanted:
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    # Equals 2PR/(P+R) with P = shared/len(found), R = shared/len(wanted), and needs no case for shared == 0.
    return 2 * shared / (len(found) + len(wanted))


def bleu(answer: str, reference: str) -> tuple[float, ...]:
    """Return what corpus BLEU-4 is computed from: matched and all n-grams of each order, both lengths in words.

    As sacrebleu counts them, tokenizer 13a. BLEU: Papineni et al. 2002; comparable settings: Post 2018. Raises
    SetupError where sacrebleu is not installed.
    """
    found = _bleu().sentence_score(answer, [reference])
    return tuple(map(float, (*found.counts, *found.totals, found.sys_len, found.ref_len)))


def chrf(answer: str, reference: str) -> tuple[float, ...]:
    """Return what corpus chrF is computed from: n-grams of the answer, of the reference and of both, for each order.

    As sacrebleu counts them, 1 to 6 characters without white space (Popović 2015). Raises SetupError where sacrebleu
    is not installed.
    """
    # Not public, but what sacrebleu's own resampling (sacrebleu/significance.py) takes: scores don't keep the counts.
    ((*counts,),) = _chrf()._extract_corpus_statistics([answer], [[reference]])
    return tuple(map(float, counts))


def rouge(answer: str, reference: str) -> dict[str, float]:
    """Return the F-measures `rouge1`, `rouge2` and `rougeL` (0..1), without stemming (Lin 2004).

    rouge_score keeps only a-z and 0-9, so a text in another script scores 0. Raises SetupError where rouge_score is
    not installed.
    """
    found = _rouge().score(reference, answer)
    return {name: float(found[name].fmeasure) for name in ROUGE_TYPES}


@cache
def _bleu() -> Any:
    # The effective order changes the score of the pair, which is not used; without it, sacrebleu warns of such scores.
    return require("sacrebleu.metrics", "sacrebleu", "bleu").BLEU(effective_order=True)


@cache
def _chrf() -> Any:
    return require("sacrebleu.metrics", "sacrebleu", "chrf").CHRF()


@cache
def _rouge() -> Any:
    scorer = require("rouge_score.rouge_scorer", "rouge-score", "rouge")
    return scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=False)


def _label(text: str) -> str:
    return text.strip().partition("\n")[0].strip().casefold()


def _squad_tokens(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
