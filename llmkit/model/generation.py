"""Batched generation with nothing but the settings given: greedy or sampled, in order, with the model put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.model.decoding import batches, continue_batch
from llmkit.model.loading import stop_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True)
class Continuation:
    """What a model added to a prompt."""

    tokens: tuple[int, ...]
    """The new tokens, the one that ended the answer included."""

    text: str
    """The answer, without special tokens."""

    stopped: bool
    """Whether an end token ended it; if not, it was cut off at the limit."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int | None,
    temperature: float = 0.0,
    seed: int = 0,
    on_done: Callable[[int], None] | None = None,
    streamer: BaseStreamer | None = None,
) -> list[str]:
    """Return the model's answer to each prompt (token ids, at least one each), in the order given.

    Where `batch_size` is None, `decoding.batches` chooses. Greedy where `temperature` is 0;
    otherwise sampled from the whole distribution at that temperature, the same for the same seed, prompts and batch
    size. Nothing of the model's own generation settings is used but its end tokens.
    The model is in eval mode meanwhile; its modes, generation settings and the global random state are put back.
    `on_done` is called after each batch with the number of prompts answered so far; a `streamer` gets the tokens of a
    single prompt as they come. Raises ValueError for an empty prompt.
    """
    config = {"max_new_tokens": max_new_tokens, **_sampling(temperature)}
    found = _continuations(model, tokenizer, prompts, config, batch_size, seed, on_done, streamer)
    return [continuation.text for continuation in found]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int | None,
    temperature: float = 1.0,
    seed: int = 0,
    on_done: Callable[[int], None] | None = None,
    **settings: Any,
) -> list[Continuation]:
    """Return a sampled continuation of each prompt, with its tokens and whether it ended by itself.

    As `generate`; `settings` are further ones of transformers' GenerationConfig, such as `top_p`, `top_k`, `min_p` and
    `repetition_penalty`. A prompt that is given several times is continued in several ways.
    """
    config = {"max_new_tokens": max_new_tokens, **_sampling(temperature), **settings}
    return _continuations(model, tokenizer, prompts, config, batch_size, seed, on_done, None)


def _continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    settings: Mapping[str, Any],
    batch_size: int | None,
    seed: int,
    on_done: Callable[[int], None] | None,
    streamer: BaseStreamer | None,
) -> list[Continuation]:
    """Return the continuation of each prompt, in the order given; `settings` are those of a GenerationConfig."""
    if not all(prompts):
        raise ValueError("a prompt to continue needs at least one token")
    stop = set(stop_ids(tokenizer, model.generation_config))
    pad = _first_known(tokenizer.pad_token_id, *sorted(stop), default=0)
    found: dict[int, Continuation] = {}
    with eval_mode(model), _own_settings_hidden(model), _seeded(model, seed):
        for batch in batches(model, prompts, settings["max_new_tokens"], batch_size):
            asked = [prompts[i] for i in batch]
            continued = continue_batch(model, asked, settings, stop=stop, pad=pad, streamer=streamer)
            for i, added in zip(batch, continued, strict=True):
                answer = _until_stop(added, stop)
                text = str(tokenizer.decode(answer, skip_special_tokens=True))
                ended = added[: len(answer) + 1]
                found[i] = Continuation(tuple(ended), text, stopped=len(ended) > len(answer))
            if on_done is not None:
                on_done(len(found))
    return [found[i] for i in range(len(prompts))]


def _sampling(temperature: float) -> dict[str, Any]:
    """Return the settings of sampling from the whole distribution, or of greedy decoding where `temperature` is 0.

    Sampling flags only where they count, since transformers warns of idle ones.
    """
    if temperature == 0:
        return {"do_sample": False}
    # top_k 0: transformers' default is 50, which is not the model's distribution.
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def _until_stop(tokens: list[int], stop: set[int]) -> list[int]:
    """Return the tokens before the first that ends the answer; what follows it is padding."""
    end = next((i for i, token in enumerate(tokens) if token in stop), len(tokens))
    return tokens[:end]


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and each of its modules back to its own mode afterwards.

    Eval mode also makes gradient checkpointing, and with it the refusal of a key-value cache, have no effect.
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Parents come before children, so a child that differs from its parent is set right after it. Only where
        # needed: some modules do costly work in train().
        for module, training in before:
            if module.training != training:
                module.train(training)


@contextmanager
def _own_settings_hidden(model: torch.nn.Module) -> Iterator[None]:
    """Hide the model's own generation config, since `generate` fills whatever an explicit config leaves unset from it.

    PEFT wrappers hold a second reference and copy it to the base model, so every holder is treated.
    """
    from transformers import GenerationConfig

    blank: Callable[[], GenerationConfig] = GenerationConfig  # its constructor is not typed
    holders = [module for module in model.modules() if "generation_config" in vars(module)]
    before = [vars(module)["generation_config"] for module in holders]
    for module in holders:
        vars(module)["generation_config"] = blank()
    try:
        yield
    finally:
        for module, own in zip(holders, before, strict=True):
            vars(module)["generation_config"] = own


@contextmanager
def _seeded(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Seed the random state of CPU and CUDA, and restore it afterwards."""
    import torch

    devices = list(range(torch.cuda.device_count())) if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _first_known(*candidates: int | None, default: int) -> int:
    return next((i for i in candidates if i is not None), default)
