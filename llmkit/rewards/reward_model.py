"""Reward model: the score that a trained sequence classifier gives to the whole conversation.

    rewards: [{type: reward_model, path: runs/reward}]

`path` is a folder that a run has trained, so it must be there before this one starts.
The prompt, the completion and the token that ends it are what the model was trained on, rendered by its own tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PrivateAttr

from llmkit.data.shapes import RowError, UnlearnableError
from llmkit.errors import SetupError
from llmkit.model.scores import check_reward_folder, load_reward_model, score_sequences
from llmkit.recipe.places import named_path
from llmkit.rewards.base import Reward, ScoreError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RewardModel(Reward):
    """Score with a model that `method: {type: reward}` has trained, or with any sequence classifier with one label.

    A completion is scored as if it had ended by itself, also where it was cut off. What is longer than `max_length` is
    refused: cut to fit, it would be another conversation.
    """

    type: Literal["reward_model"]
    """The score by a reward model."""

    path: str = Field(min_length=1)
    """Run folder of a `reward` run, folder of a sequence classifier or of its adapter, or hub id."""

    batch_size: int = Field(default=8, ge=1)
    """Completions scored at once; the scores do not depend on it."""

    max_length: int | None = Field(default=None, ge=1)
    """Longest prompt with completion, in tokens; the model's `max_position_embeddings` if unset."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Data type of the weights; if unset, float32 on a CPU, and as they are saved on a GPU."""

    _model: Any = PrivateAttr(default=None)
    _tokenizer: Any = PrivateAttr(default=None)

    def check_setup(self, folder: Path) -> None:
        """Raise SetupError where `path` is a folder without a reward model; a hub id is looked up when it is loaded."""
        place = _located(self.path, folder)
        if isinstance(place, Path):
            check_reward_folder(place)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise RowError if the row has no prompt."""
        if not row.get("prompt"):
            raise RowError(f"no column 'prompt', which reward `{self.name}` scores the completion with")

    def set_up(self, folder: Path) -> None:
        """Load model and tokenizer; raises SetupError where that can't be done or the model gives no single score."""
        self._model, self._tokenizer = load_reward_model(_located(self.path, folder), self.dtype)

    def scores(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the model's score of each completion; raises ScoreError for one that is too long with its prompt."""
        sequences = [
            token_ids(self._tokenizer, row, completion) for completion, row in zip(completions, rows, strict=True)
        ]
        limit = self.max_length or getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        lengths = [len(sequence) for sequence in sequences]
        longest = max(lengths, default=0)
        if limit is not None and longest > limit:
            raise ScoreError(
                f"prompt and completion have {longest} tokens, and the reward model reads {limit}",
                lengths.index(longest),
                remedy="Lower `training.max_completion_length`, drop long prompts, or set the reward's `max_length` "
                "if the model can read more.",
            )
        return score_sequences(self._model, sequences, batch_size=self.batch_size)


def token_ids(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], completion: str) -> list[int]:
    """Return the ids of the row's prompt with `completion` and the token that ends it, as `reward` trains on them.

    Of an empty completion the end token is left. Raises RowError where the chat template refuses the conversation.
    """
    chat = not isinstance(row["prompt"], str)
    example = {**row, "completion": [{"role": "assistant", "content": completion}] if chat else completion}
    # Only the place where the answer ends is looked for here, so whatever the template ends a turn with will do.
    # Here, as the schema of a recipe imports this file, and all of tokenizing with it.
    from llmkit.data import answers
    from llmkit.data.masks import end_token, raised

    stops = frozenset({end_token(tokenizer), *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder})
    try:
        ids = raised(answers.unpaired(tokenizer, [example], stops, rules=None)[0])
    except UnlearnableError:
        prompt = raised(answers.prompts(tokenizer, [example], stops, rules=None)[0])
        return [*prompt["prompt_ids"], end_token(tokenizer)]
    return ids["prompt_ids"] + ids["completion_ids"]


def _located(path: str, folder: Path) -> Path | str:
    """Return the model's folder, of a run folder the one inside; or the hub id where there is no such folder.

    Raises SetupError where there is neither.
    """
    place = named_path(path, folder).resolve()
    if (place / "recipe.yaml").is_file():
        if not (place / "model").is_dir():
            raise SetupError(
                f"the run {place} has no trained model yet", remedy=f"llmkit run {place}/recipe.yaml --resume"
            )
        return place / "model"
    if place.is_dir():
        return place
    if place.exists():
        raise SetupError(f"reward `reward_model`: {place} is a file, and no folder of a model")
    is_here = Path(path).is_dir()
    if is_here or path.startswith((".", "/", "~", "runs/")) or path.endswith("/") or path.count("/") > 1:
        here = f" There is one in the current folder: {Path(path).resolve()}." if is_here else ""
        raise SetupError(
            f"reward `reward_model`: no folder {place}",
            remedy=f"A relative path starts from the recipe's folder.{here}",
        )
    return path
