"""Text metrics as pure functions with the interface of the `evaluate` library: predictions, references -> numbers.

`predictions` and `references` are strings in the same order and of the same number (at least one).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType

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


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return `exact_match`, the share (0..1) of predictions equal to their reference after strip()."""
    return {"exact_match": _mean(_equal_stripped, predictions, references)}


def accuracy(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return `accuracy`, the share (0..1) of predictions whose label is that of their reference.

    A label is the first line of the stripped text, stripped again and case-folded.
    """
    return {"accuracy": _mean(_equal_labels, predictions, references)}


def f1(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return `f1` (0..1), the mean token overlap F1 of SQuAD (Rajpurkar et al. 2016, section 6.1).

    Texts are lower-cased, stripped of ASCII punctuation and of the articles a, an, the, and split at white space.
    Where either side is then empty, F1 is 1 if both are and 0 otherwise (evaluation script of SQuAD 2.0).
    """
    return {"f1": _mean(_token_f1, predictions, references)}


def bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return `bleu` (0..100), sacrebleu's corpus BLEU-4: tokenizer 13a, smoothing exp, effective order off.

    BLEU: Papineni et al. 2002; comparable settings: Post 2018. Raises SetupError where sacrebleu is not installed.
    """
    sacrebleu = require("sacrebleu", "sacrebleu", "bleu")
    _check(predictions, references)
    result = sacrebleu.corpus_bleu(list(predictions), [list(references)], use_effective_order=False)
    return {"bleu": float(result.score)}


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return `rouge1`, `rouge2` and `rougeL` (0..1): mean F-measures over the pairs, without stemming (Lin 2004).

    rouge_score keeps only a-z and 0-9, so a text in another script scores 0. Raises SetupError where rouge_score is
    not installed.
    """
    rouge_scorer = require("rouge_score.rouge_scorer", "rouge-score", "rouge")
    _check(predictions, references)
    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=False)
    pairs = [scorer.score(reference, answer) for answer, reference in zip(predictions, references, strict=True)]
    return {name: sum(float(pair[name].fmeasure) for pair in pairs) / len(pairs) for name in ROUGE_TYPES}


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    """Raise ValueError unless there are as many predictions as references, and at least one."""
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions can't be scored against {len(references)} references")


def _mean(score: Callable[[str, str], float], predictions: Sequence[str], references: Sequence[str]) -> float:
    _check(predictions, references)
    return sum(map(score, predictions, references)) / len(predictions)


def _equal_stripped(prediction: str, reference: str) -> float:
    return float(prediction.strip() == reference.strip())


def _equal_labels(prediction: str, reference: str) -> float:
    return float(_label(prediction) == _label(reference))


def _label(text: str) -> str:
    return text.strip().partition("\n")[0].strip().casefold()


def _squad_tokens(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _token_f1(prediction: str, reference: str) -> float:
    found, wanted = _squad_tokens(prediction), _squad_tokens(reference)
    if not found or not wanted:
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    # Equals 2PR/(P+R) with P = shared/len(found), R = shared/len(wanted), and needs no case for shared == 0.
    return 2 * shared / (len(found) + len(wanted))
