"""Reward models outside of training: loaded from a folder or the hub, and the scores of token sequences in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import SetupError
from llmkit.model.batches import to_read
from llmkit.model.generation import eval_mode
from llmkit.model.heads import check_one_label, check_whole, fresh_head, hold_head_in_float32, is_classifier
from llmkit.model.sources import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_config(folder: Path, name: str) -> dict[str, Any] | None:
    """Return a JSON file of a model folder, or None where there is none."""
    file = folder / name
    if not file.is_file():
        return None
    return read_json(file)


def check_reward_folder(folder: Path) -> None:
    """Raise SetupError where `folder` holds no reward model, as far as its config files tell; imports nothing heavy."""
    adapter, config = read_config(folder, "adapter_config.json"), read_config(folder, "config.json")
    if adapter is not None:
        if adapter.get("task_type") != "SEQ_CLS":
            raise _no_reward_model(folder, f"an adapter for {adapter.get('task_type')}")
    elif config is not None:
        _check_config(config, folder)
    else:
        raise SetupError(f"{folder} has neither a config.json nor an adapter_config.json, so it is no model folder")


def _check_config(config: dict[str, Any], place: Path | str) -> None:
    if not is_classifier(config):
        known = config.get("architectures") or ("a model of unknown kind",)
        raise _no_reward_model(place, " and ".join(map(str, known)))
    check_one_label(config, str(place))


def _no_reward_model(place: Path | str, what: str) -> SetupError:
    return SetupError(
        f"{place} is no reward model, but {what}: it gives no scores",
        remedy="Train one with `method: {type: reward}`, or name a sequence classifier with one label.",
    )


def load_reward_model(place: Path | str, dtype: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a reward model from a folder or a hub id, in eval mode on the best device, with its own tokenizer.

    An adapter is loaded over the base that its config names. If `dtype` is not given, weights are float32 on a CPU, and
    as they are saved on a GPU. Raises SetupError for a model that can't be loaded or gives no single score.
    """
    import torch
    from transformers import AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype or ("auto" if device == "cuda" else "float32")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        adapter = read_config(place, "adapter_config.json") if isinstance(place, Path) else None
        if isinstance(place, Path) and adapter is not None:
            model = _load_adapter(place, str(adapter["base_model_name_or_path"]), dtype)
        else:
            model = _load_whole(place, dtype)
    except (OSError, ValueError) as error:  # ValueError: it brings code, which is not run
        raise SetupError(
            f"the reward model {place} can't be loaded: {str(error).splitlines()[0]}",
            remedy="Check the path; a name that is no folder is looked for on the hub. An adapter needs its base: "
            "without it, use the model that `export: [{type: merged}]` has written.",
        ) from error
    hold_head_in_float32(model)
    config = model.config.get_text_config()
    # The last token of a padded row is found by it; the tokenizer was saved by the training, the base's config was not.
    known = (tokenizer.pad_token_id, config.pad_token_id, tokenizer.eos_token_id)
    config.pad_token_id = next(i for i in known if i is not None)
    return model.to(device).eval(), tokenizer


def _load_whole(place: Path | str, dtype: str) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    _check_config(AutoConfig.from_pretrained(place, trust_remote_code=False).to_dict(), place)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        place, dtype=dtype, use_safetensors=True, output_loading_info=True, trust_remote_code=False
    )
    check_whole(report["missing_keys"], str(place))
    return model


def _load_adapter(folder: Path, base: str, dtype: str) -> PreTrainedModel:
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import AutoModelForSequenceClassification

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        if not any("score" in name.split(".") or "classifier" in name.split(".") for name in file.keys()):  # noqa: SIM118
            raise SetupError(f"the adapter in {folder} has no score head, so its scores would be random")
    with fresh_head(0):
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    # Before the adapter brings its head: a copy is as exact as what it is copied into.
    hold_head_in_float32(model)
    return PeftModel.from_pretrained(model, folder)


def score_sequences(
    model: PreTrainedModel,
    sequences: Sequence[list[int]],
    *,
    batch_size: int | None,
    on_done: Callable[[int], None] | None = None,
) -> list[float]:
    """Return the score of each sequence of token ids (at least one each), in their order, whatever the batch size.

    Where `batch_size` is None, batches are bounded by their tokens. The score is read at the last token that is not the
    config's pad token, as transformers' classifiers do. The model is in eval mode meanwhile. `on_done` is called with
    the number of sequences scored so far.
    """
    import torch

    pad = model.config.get_text_config().pad_token_id
    scores = [0.0] * len(sequences)
    done = 0
    with eval_mode(model):
        for batch in to_read(model, [len(ids) for ids in sequences], batch_size):
            width = len(sequences[batch[0]])
            gaps = [width - len(sequences[i]) for i in batch]
            ids = [sequences[i] + [pad] * gap for i, gap in zip(batch, gaps, strict=True)]
            mask = [[1] * (width - gap) + [0] * gap for gap in gaps]
            # Not inference_mode: buffers a model fills on the way (rotary tables) must remain usable in later training.
            with torch.no_grad():
                logits_B1 = model(
                    input_ids=torch.tensor(ids, device=model.device),
                    attention_mask=torch.tensor(mask, device=model.device),
                ).logits
            for i, score in zip(batch, logits_B1[:, 0].tolist(), strict=True):
                scores[i] = score
            done += len(batch)
            if on_done is not None:
                on_done(done)
    return scores
