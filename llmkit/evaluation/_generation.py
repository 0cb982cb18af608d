"""Answers of a model to prompts: batched generation, prompts from rows, and the base of the generated evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from llmkit.data.shapes import RowError
from llmkit.errors import DataError, RecipeError
from llmkit.evaluation.base import Evaluation, Sample, Score, Subject

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from llmkit.data.splits import Row


class Generated(Evaluation):
    """Base of the evaluations that compare the model's answers with references."""

    type: str
    """Name of the evaluation: its file."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""

    limit: int | None = Field(default=None, ge=1)
    """Use only the first held-out rows; all of them if unset."""

    batch_size: int = Field(default=16, ge=1)
    """Prompts answered at once."""

    def measure(self, predictions: Sequence[str], references: Sequence[str], folder: Path) -> dict[str, float]:
        """Return the metrics of the answers; `references` are in the same order, paths start from `folder`."""
        raise NotImplementedError

    def score(self, subject: Subject) -> Score:
        """Generate greedily and measure; raises DataError for a row without a reference."""
        self.check_setup(subject.folder)
        samples = answers(
            subject,
            max_new_tokens=self.max_new_tokens,
            limit=self.limit,
            batch_size=self.batch_size,
            evaluation=self.type,
            need_references=True,
        )
        references = [sample.reference or "" for sample in samples]
        predictions = [sample.answer for sample in samples]
        return Score(self.measure(predictions, references, subject.folder), len(samples), samples)


def answers(
    subject: Subject,
    *,
    max_new_tokens: int,
    limit: int | None,
    batch_size: int,
    evaluation: str = "generate",
    temperature: float = 0.0,
    seed: int = 0,
    need_references: bool = False,
) -> tuple[Sample, ...]:
    """Return the subject's answers to its first `limit` rows, generated once for each setting (`subject.answers`).

    `evaluation` names the asker in errors. Raises DataError where there are no rows, where one has no prompt, or where
    one has no reference although `need_references`; RecipeError where rows of this shape hold no prompt at all.
    """
    rows = subject.rows[:limit]
    # Greedy answers depend on neither seed nor batch size (but for rounding), so evaluations that differ only there
    # share them; sampled answers depend on both.
    key = (max_new_tokens, len(rows), temperature, (seed, batch_size) if temperature > 0 else None)
    samples = subject.answers.get(key)
    if samples is None:
        prompts = row_prompts(subject.tokenizer, rows, evaluation=evaluation)
        if need_references:  # before anything is generated
            _check_references([(where, reference) for where, _, _, reference in prompts], evaluation)
        samples = respond(
            subject,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            temperature=temperature,
            seed=seed,
        )
        subject.answers[key] = samples
    elif need_references:
        _check_references([(sample.where, sample.reference) for sample in samples], evaluation)
    return samples


Prompt = tuple[str, list[int], str, str | None]
"""Where the prompt came from, its token ids, its readable text, and the reference answer (None: there is none)."""


def row_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, evaluation: str) -> list[Prompt]:
    """Return the prompt of each row; raises as `answers` does."""
    if not rows:
        raise DataError(f"evaluation `{evaluation}` has no held-out rows", remedy="set `data.eval`")
    found: list[Prompt] = []
    for row in rows:
        try:
            ids, text, reference = prompt_ids(tokenizer, row.example, evaluation=evaluation)
        except RowError as error:
            raise DataError(str(error), where=row.where) from error
        found.append((row.where, ids, text, reference))
    return found


def _check_references(references: Sequence[tuple[str, str | None]], evaluation: str) -> None:
    """Raise DataError for the first place whose reference is None."""
    missing = next((where for where, reference in references if reference is None), None)
    if missing is not None:
        raise DataError(
            f"the row has no reference answer, which evaluation `{evaluation}` compares with",
            where=missing,
            remedy="give it one (`answer`, `completion` or a last assistant turn), or use `type: generate`",
        )


def respond(
    subject: Subject,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float,
    seed: int,
) -> tuple[Sample, ...]:
    """Return the model's answer to each prompt, in their order."""
    texts = generate(
        subject.model,
        subject.tokenizer,
        [ids for _, ids, _, _ in prompts],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
    )
    return tuple(
        Sample(where, prompt, reference, answer)
        for (where, _, prompt, reference), answer in zip(prompts, texts, strict=True)
    )


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, example: dict[str, Any], *, evaluation: str = "generate"
) -> tuple[list[int], str, str | None]:
    """Return the token ids to continue, the readable prompt, and the reference answer (None: there is none).

    A conversation is cut before its last assistant turn, which is the reference. Lists of messages go through the chat
    template with the start of an assistant turn; a string is continued as it stands. The readable prompt is the last
    user message, or the string.

    Raises RowError where this example has no prompt, RecipeError where examples of its shape can't have one.
    """
    reference: str | None = None
    prompt: Any
    if "messages" in example:
        prompt, reference = _before_last_answer(example["messages"])
    elif "prompt" in example:
        prompt, reference = example["prompt"], _reference(example)
    else:
        raise RecipeError(
            f"evaluation `{evaluation}` needs prompts to answer, and rows with only {_columns(example)} have none",
            remedy="use `type: perplexity`, or `type: generate` with `prompts: FILE.jsonl`",
        )
    if isinstance(prompt, str):
        ids, text = list(tokenizer(prompt)["input_ids"]), prompt
    else:
        ids, text = _template_ids(tokenizer, prompt, example.get("tools")), _last_user_text(prompt)
    if not ids:
        raise RowError("the prompt is empty")
    return ids, text, reference


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seed: int = 0,
    on_done: Callable[[int], None] | None = None,
) -> list[str]:
    """Return the model's answer to each prompt (token ids, at least one each), in the order given.

    Greedy where `temperature` is 0; otherwise sampled from the whole distribution at that temperature, the same for
    the same seed, prompts and batch size. Nothing of the model's own generation settings is used but its end tokens.
    The model is in eval mode meanwhile; its modes, generation settings and the global random state are put back.
    `on_done` is called after each batch with the number of prompts answered so far. Raises ValueError for an empty
    prompt.
    """
    if not all(prompts):
        raise ValueError("a prompt to continue needs at least one token")
    stop = stop_ids(model, tokenizer)
    pad = _first_known(tokenizer.pad_token_id, *sorted(stop), default=0)
    config = _settings(max_new_tokens, temperature, stop=stop, pad=pad)
    texts = [""] * len(prompts)
    done = 0
    with _eval_mode(model), _own_settings_hidden(model), _seeded(model, seed):
        for batch in _batches([len(p) for p in prompts], batch_size, equal=_ignores_positions(model)):
            continued = _continue_batch(model, [prompts[i] for i in batch], config, pad)
            for i, tokens in zip(batch, continued, strict=True):
                texts[i] = str(tokenizer.decode(_until_stop(tokens, stop), skip_special_tokens=True))
            done += len(batch)
            if on_done is not None:
                on_done(done)
    return texts


def _batches(lengths: Sequence[int], batch_size: int, *, equal: bool) -> list[list[int]]:
    """Return the indices of `lengths` in batches, longest first; with `equal`, each batch is of one length.

    Longest first: a batch that doesn't fit in memory fails at once, and each batch needs little padding.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        last = batches[-1] if batches else None
        if last is None or len(last) == batch_size or (equal and lengths[last[0]] != lengths[i]):
            batches.append([i])
        else:
            last.append(i)
    return batches


def _ignores_positions(model: PreTrainedModel) -> bool:
    """Whether padding on the left would change answers: PEFT's prompt learning drops position ids.

    The padding then stands as distance between the virtual tokens and the prompt.
    """
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end an answer: the tokenizer's end token and those of the model's generation config."""
    own = getattr(model.generation_config, "eos_token_id", None)
    listed = own if isinstance(own, (list, tuple)) else [own]
    return {int(i) for i in [tokenizer.eos_token_id, *listed] if i is not None}


def _settings(max_new_tokens: int, temperature: float, *, stop: set[int], pad: int) -> GenerationConfig:
    """Return generation settings; sampling flags only where they count, since transformers warns of idle ones."""
    from transformers import GenerationConfig

    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        # top_k 0: transformers' default is 50, which is not the model's distribution.
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    make: Callable[..., GenerationConfig] = GenerationConfig  # its constructor is not typed
    return make(
        max_new_tokens=max_new_tokens,
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(stop) or None,
        pad_token_id=pad,
        **sampling,
    )


def _continue_batch(
    model: PreTrainedModel, prompts: Sequence[list[int]], config: GenerationConfig, pad: int
) -> list[list[int]]:
    """Return the new tokens of each prompt, padded on the right to the longest answer of the batch."""
    import torch

    # Padded by hand, on the left so that all prompts end together; the tokenizer's padding side stays as it is.
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    continue_: Any = model.generate  # typed as a module's attribute
    # Not inference_mode: buffers a model fills on the way (rotary tables) must remain usable in later training.
    with torch.no_grad():
        out = continue_(input_ids=ids, attention_mask=mask, generation_config=config)
    new: list[list[int]] = out[:, width:].tolist()
    return new


def _until_stop(tokens: list[int], stop: set[int]) -> list[int]:
    """Return the tokens before the first that ends the answer; what follows it is padding."""
    end = next((i for i, token in enumerate(tokens) if token in stop), len(tokens))
    return tokens[:end]


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
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


def _before_last_answer(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """Return the messages up to the last assistant turn and that turn's text; all messages where there is none."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    if last == 0:
        raise RowError("nothing stands before the assistant's turn" if messages else "there are no messages")
    return list(messages[:last]), _text(messages[last]) if last < len(messages) else None


def _reference(example: dict[str, Any]) -> str | None:
    """Return the first of `answer`, `completion` and `chosen`; a completion labelled bad is no reference."""
    if example.get("label") is False:
        return None
    values = (example.get(name) for name in ("answer", "completion", "chosen"))
    return next((_text(value) for value in values if value is not None), None)


def _text(value: Any) -> str | None:
    """Return the text of a string, a number, a message, or the last of a list of messages; None where it is empty."""
    if isinstance(value, (list, tuple)):
        value = value[-1] if value else None
    if isinstance(value, dict):
        value = value.get("content")
    return None if value is None or value == "" else str(value)


def _last_user_text(messages: Sequence[dict[str, Any]]) -> str:
    users = [message for message in messages if message["role"] == "user"]
    return _text(users or messages) or ""


def _template_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], tools: Any) -> list[int]:
    """Return the ids of the messages in the tokenizer's chat template, up to the start of an assistant turn."""
    if not messages:
        raise RowError("the prompt has no messages")
    if not tokenizer.chat_template:
        raise RecipeError("the tokenizer has no chat template for messages", remedy="set `model.chat_template`")
    # return_dict is spelt out because its default changed in transformers 5.
    encoded: Any = tokenizer.apply_chat_template(
        list(messages), tools=tools, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"])


def _columns(example: dict[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in example) or "tokens"
