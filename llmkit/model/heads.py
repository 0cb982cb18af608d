"""The head of a reward model: a sequence classifier with one label, whose output is the score of a whole sequence."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from llmkit.errors import SetupError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CLASSIFIER = "AutoModelForSequenceClassification"
"""The transformers class that reward models are loaded with."""


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a sequence classifier."""
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def check_one_label(config: Mapping[str, Any], name: str) -> None:
    """Raise SetupError if the classifier `name`, of which this is the `config.json`, has not exactly one label."""
    # transformers takes two where the file names none.
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) and labels else 2
    if count != 1:
        raise SetupError(
            f"{name} is a classifier with {count} labels, and a reward model has one",
            remedy="Use a reward model: train one with `method: {type: reward}`, which starts from a language model.",
        )


def check_whole(missing: Collection[str], name: str) -> None:
    """Raise SetupError where weights of `name` are missing, by transformers' loading report."""
    if missing:
        raise SetupError(
            f"{name} lacks {len(missing)} of the weights, e.g. {min(missing)}: they would be random",
            remedy="Save the whole model (`model.save_pretrained`), or name another one.",
        )


def gives_scores(model: PreTrainedModel) -> bool:
    """Whether `model` (or the model below its adapter) scores sequences instead of foretelling tokens."""
    return not model.can_generate()


@contextmanager
def fresh_head(seed: int) -> Iterator[None]:
    """Load a language model as a classifier: the head that it lacks is drawn by `seed`, without a report about it."""
    import torch
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), suppress_seqcls_warning():
        torch.manual_seed(seed)
        yield


def hold_head_in_float32(model: torch.nn.Module) -> None:
    """Hold the score head of `model`, and each copy that PEFT has made of it, in float32, and let it compute there.

    In 16 bits a score has 3 digits, so that good and bad answers tie, and updates below 1/256 of a weight vanish. Heads
    of other names than `score` (those of encoders) are left as they are.
    """
    import torch

    for name, module in model.named_modules():
        if "score" not in name.split(".") or not isinstance(module, torch.nn.Linear):
            continue
        for parameter in module.parameters():
            parameter.data = parameter.data.float()
        # The class and not a hook: PEFT deep-copies the head, and autocast casts behind any hook on the input.
        module.__class__ = _float32_head()


@cache
def _float32_head() -> type[torch.nn.Linear]:
    """Return the class of a linear layer that computes in its own data type, whatever autocast says."""
    import torch

    class Float32Head(torch.nn.Linear):
        """A score head in float32."""

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            """Return the scores of `hidden`, in the data type of the weights."""
            with torch.autocast(hidden.device.type, enabled=False):
                return super().forward(hidden.to(self.weight.dtype))

    return Float32Head
