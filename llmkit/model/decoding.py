"""One batch of decoding: what its prompts begin with alike is read once, and rows that have ended leave it.

transformers' `generate` computes each row until the longest one ends, and reads each prompt whole. Both cost what they
save here: the cache is ours, so a batch can begin with the keys and values of a shared beginning, and be continued
without the rows that have ended. What is computed stays the same, in other shapes: greedy answers differ only where two
tokens are as likely as each other up to rounding, as they do with the batch size.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from llmkit.model.batches import least_work, longest_first, pass_cost

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, GenerationConfig, PreTrainedModel
    from transformers.generation.streamers import BaseStreamer

ROWS = 64
"""Most prompts in a batch whose size is left open: more make the products of a decoding step little faster."""

LEAST_ROOM = 2**29
"""Bytes of keys and values that a batch whose size is left open may have with any model."""

STATEFUL_LENGTH = 2048
"""Tokens that a prompt and its answer are taken to have for models without keys and values."""

WORTH_SHARING = 64
"""Tokens that a shared beginning must save: to read it on its own costs about as much as 30."""

LEAVING = 4
"""The rows that have ended leave the batch when they are one in so many of it."""

STEPWISE = frozenset({"max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"})
"""Settings that mean the same where an answer is continued, and where padding stands within a prompt."""


def continue_batch(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    settings: Mapping[str, Any],
    *,
    stop: set[int],
    pad: int,
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """Return the new tokens of each prompt, up to and with the first of `stop`; padding may follow.

    `settings` are those of a GenerationConfig, `max_new_tokens` among them. A `streamer` takes a single prompt.
    """
    import torch

    cache = _own_cache(model) if len(prompts) > 1 and settings.keys() <= STEPWISE else None
    shared = _shared(model, prompts) if cache is not None else 0
    # Padded by hand, so that all prompts end together; the tokenizer's padding side stays as it is.
    gaps = [max(map(len, prompts)) - len(p) for p in prompts]
    pairs = list(zip(prompts, gaps, strict=True))
    ids_BT = torch.tensor([p[:shared] + [pad] * gap + p[shared:] for p, gap in pairs], device=model.device)
    mask_BT = torch.ones_like(ids_BT)
    for row, gap in enumerate(gaps):
        mask_BT[row, shared : shared + gap] = 0
    # Not inference_mode: buffers a model fills on the way (rotary tables) must remain usable in later training.
    with torch.no_grad():
        if cache is not None and shared:
            _read(model, ids_BT[:1, :shared], cache, stop, pad)
            cache.batch_repeat_interleave(len(prompts))
        return _decode(model, ids_BT, mask_BT, cache, settings, stop, pad, streamer)


def _decode(
    model: PreTrainedModel,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    cache: DynamicCache | None,
    settings: Mapping[str, Any],
    stop: set[int],
    pad: int,
    streamer: BaseStreamer | None,
) -> list[list[int]]:
    """Return the new tokens of each row; `cache` may hold what the rows begin with, and is used up."""
    import torch

    generate: Any = model.generate  # typed as a module's attribute
    found: list[list[int]] = [[] for _ in range(len(ids_BT))]
    rows = list(range(len(ids_BT)))
    while rows:
        left = settings["max_new_tokens"] - len(found[rows[0]])
        if left == 0:
            break
        width = ids_BT.shape[1]
        given = {"generation_config": generation_config({**settings, "max_new_tokens": left}, stop=stop, pad=pad)}
        if cache is not None:
            given |= {"past_key_values": cache, "stopping_criteria": _when_rows_end(stop, width, len(rows))}
        out_BT = generate(input_ids=ids_BT, attention_mask=mask_BT, streamer=streamer, **given)
        new: list[list[int]] = out_BT[:, width:].tolist()
        for row, tokens in zip(rows, new, strict=True):
            found[row] += tokens
        going = [i for i, tokens in enumerate(new) if stop.isdisjoint(tokens)]
        if cache is None or not going:
            break
        rows = [rows[i] for i in going]
        cache.batch_select_indices(torch.tensor(going, device=out_BT.device))
        ids_BT = out_BT[going]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), len(new[0]))], dim=1)[going]
    return found


def generation_config(settings: Mapping[str, Any], *, stop: set[int], pad: int) -> GenerationConfig:
    """Return transformers' config of `settings` with a cache and without beams."""
    from transformers import GenerationConfig

    make: Callable[..., GenerationConfig] = GenerationConfig  # its constructor is not typed
    return make(num_beams=1, use_cache=True, eos_token_id=sorted(stop) or None, pad_token_id=pad, **settings)


def _read(model: PreTrainedModel, ids_1T: torch.Tensor, cache: DynamicCache, stop: set[int], pad: int) -> None:
    """Add the keys and values of one row to `cache`."""
    import torch

    # The token that comes out is not in the cache, and not wanted. `generate` knows how to call each model.
    generate: Any = model.generate
    config = generation_config({"max_new_tokens": 1, "do_sample": False}, stop=stop, pad=pad)
    generate(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), past_key_values=cache, generation_config=config)


def _when_rows_end(stop: set[int], width: int, rows: int) -> Any:
    """Return the criterion that interrupts a batch of `rows` as soon as enough of them have ended."""
    import torch
    from transformers import StoppingCriteriaList

    def reached(ids_BT: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        ends = torch.tensor(sorted(stop), dtype=ids_BT.dtype, device=ids_BT.device)
        ended = torch.isin(ids_BT[:, width:], ends).any(dim=1).sum()
        return (ended >= max(1, rows // LEAVING)).expand(len(ids_BT))

    return StoppingCriteriaList([reached])


def ignores_positions(model: PreTrainedModel) -> bool:
    """Whether padding would change answers: PEFT's prompt learning drops position ids.

    The padding then stands as distance between the virtual tokens and the prompt.
    """
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def _own_cache(model: PreTrainedModel) -> DynamicCache | None:
    """Return an empty cache whose rows can be chosen, or None for models that remember otherwise.

    Windows, states and indices of other layers count places, padding included.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if ignores_positions(model) or model._is_stateful:
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None


def _shared(model: PreTrainedModel, prompts: Sequence[list[int]]) -> int:
    """Return how many first tokens of all prompts are read once; each prompt keeps one of its own.

    0 where that saves little, and for models where it has not been shown to change nothing: other attention kernels,
    and rotary embeddings that depend on the length of what is read.
    """
    config = model.config.get_text_config(decoder=True)
    rope = repr(getattr(config, "rope_parameters", None))
    if config._attn_implementation not in ("sdpa", "eager") or "dynamic" in rope or "longrope" in rope:
        return 0
    alike = len(commonprefix(prompts))
    alike = min(alike, min(map(len, prompts)) - 1)
    return alike if alike * (len(prompts) - 1) >= WORTH_SHARING else 0


def batches(
    model: PreTrainedModel, prompts: Sequence[list[int]], new_tokens: int, batch_size: int | None
) -> list[list[int]]:
    """Return the indices of `prompts` in batches, longest first.

    They have `batch_size` prompts. Where that is None, they have up to `ROWS` prompts and `_room` for their keys and
    values, and a prompt that is much longer than the others does not have them padded to its length.
    """
    lengths = [len(prompt) + new_tokens for prompt in prompts]
    equal = ignores_positions(model)
    if batch_size is not None:
        return longest_first(lengths, batch_size, equal=equal)
    return least_work(lengths, batch_cost=pass_cost(model) * new_tokens, tokens=_room(model), most=ROWS, equal=equal)


def _room(model: PreTrainedModel) -> int:
    """Return the tokens of a batch whose size is left open, prompts and answers: a bound on its keys and values.

    They take up to an eighth of the weights' memory, or `LEAST_ROOM`. The free memory doesn't count, nor does an
    adapter (powers of two): sampled answers depend on the batches, and those must be the same again.
    """
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None)
    if not heads:  # no keys and values, but a state that does not grow
        return ROWS * STATEFUL_LENGTH
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * size
    share = 1 << max(0, int(model.get_memory_footprint()).bit_length() - 4)
    return int(max(LEAST_ROOM, share) // (kept * model.dtype.itemsize))
