"""What GRPO and RLOO share: the checks of their recipes, their data set, and their call-outs at the start."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from math import gcd
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from llmkit.data.shapes import Shape
from llmkit.errors import DataError, RecipeError, SetupError
from llmkit.methods._pairs_checks import check_adapter_off, refuse
from llmkit.methods.base import Job, Method
from llmkit.recipe import fields
from llmkit.rewards.base import score_part, total

if TYPE_CHECKING:
    from datasets import Dataset

    from llmkit.recipe.recipe import Recipe

_BATCH = "per_device_train_batch_size"
_STEPS = "gradient_accumulation_steps"

NEAR = 1000
"""How far from `num_generations` a size of groups is looked for that would come out whole."""


class PolicyMethod(Method):
    """Base of the methods that sample answers, have them rewarded, and learn from the differences in a group."""

    max_kl: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Bound on the KL divergence from the reference, in nats per token; three logged steps beyond it stop the run."""

    accepts: ClassVar[frozenset[Shape]] = frozenset({Shape.PROMPT})
    needs_rewards: ClassVar[bool] = True

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse groups that don't come out whole, a bound without a KL term, and vLLM where it can't be used.

        Raises RecipeError or SetupError; loads nothing.
        """
        given = _Settings(self.config, recipe.training.kwargs())
        with recipe.at("training", "num_generations"):
            _check_groups(given)
        with recipe.at("training", "per_device_eval_batch_size"):
            _check_evaluation_groups(given)
        if self.max_kl is not None and not given["beta"] > 0:
            raise RecipeError(
                f"`method.max_kl: {self.max_kl:g}` bounds the KL divergence, which is not computed with beta 0",
                where=recipe.origin(("method", "max_kl")),
                remedy="Set `training.beta`, e.g. 0.04 (it takes a reference model), or leave out `max_kl`.",
            )
        if given["sync_ref_model"] and (recipe.adapter is not None or not given["beta"]):
            what = "there is no second model to move: that takes full training and a `training.beta` above 0"
            refuse(recipe, "sync_ref_model", what, "Remove it.")
        if given["beta"] and recipe.adapter is not None:
            check_adapter_off(recipe, recipe.adapter.kwargs())
        if given["use_vllm"]:
            with recipe.at("training", "use_vllm"):
                _check_vllm(recipe)


class _Settings(Mapping[str, Any]):
    """The fields of a TRL config: what the recipe sets, or the library's default."""

    def __init__(self, config: str, given: Mapping[str, Any]) -> None:
        self.given = given
        self.defaults = {name: info.default for name, info in fields.describe(config).items()}

    def __getitem__(self, name: str) -> Any:
        return self.given[name] if name in self.given else self.defaults[name]

    def __iter__(self) -> Any:
        return iter(self.defaults)

    def __len__(self) -> int:
        return len(self.defaults)


def _check_groups(given: _Settings) -> None:
    """Refuse a number of completions that doesn't divide into groups; what the planner decides always does."""
    group = given["num_generations"]
    if group is None or group < 2:
        raise RecipeError(
            f"`training.num_generations` must be at least 2, not {group}",
            remedy="An answer is compared with the others to its prompt: one alone gives nothing to learn from.",
        )
    if given["auto_find_batch_size"]:
        raise RecipeError(
            "`training.auto_find_batch_size` would halve the batch and split the groups of answers",
            remedy=f"Leave it out, and set `training.{_BATCH}` lower if memory runs out.",
        )
    wanted = [name for name in ("generation_batch_size", "steps_per_generation") if given[name] is not None]
    if len(wanted) == 2:
        raise RecipeError(f"`training.{wanted[0]}` and `{wanted[1]}` say the same", remedy="Remove one of them.")
    if wanted and _BATCH not in given.given:
        raise RecipeError(
            f"`training.{wanted[0]}` needs `training.{_BATCH}` beside it: the two are multiplied or divided",
            remedy=f"Set `training.{_BATCH}`, or leave out `{wanted[0]}` and let the planner decide on both.",
        )
    if wanted == ["generation_batch_size"]:
        _check_generation_batch(given, group)
    elif wanted:
        _check_product(given, "steps_per_generation", group)
    elif _BATCH in given.given and _STEPS in given.given:
        _check_product(given, _STEPS, group)


def _check_generation_batch(given: _Settings, group: int) -> None:
    total, batch = given["generation_batch_size"], given[_BATCH]
    for divisor, name in ((batch, _BATCH), (group, "num_generations")):
        if total % divisor:
            below, above = total // divisor * divisor, -(-total // divisor) * divisor
            choices = " or ".join(str(n) for n in (below, above) if n)
            raise RecipeError(
                f"`training.generation_batch_size: {total}` can't be divided by `training.{name}: {divisor}`",
                remedy=f"Nearest that can: {choices}.",
            )


def _check_product(given: _Settings, steps_name: str, group: int) -> None:
    batch, steps = given[_BATCH], given[steps_name]
    total = batch * steps
    if total % group == 0:
        return
    more, larger = _next_multiple(steps, group // gcd(batch, group)), _next_multiple(batch, group // gcd(steps, group))
    # Further away than that, it would be another run.
    near = range(max(2, group - NEAR), min(total, group + NEAR) + 1)
    nearest = min((n for n in near if total % n == 0), key=lambda n: (abs(n - group), n), default=None)
    groups = f", or num_generations {nearest}" if nearest else ""
    raise RecipeError(
        f"{batch} completions per batch x {steps} {steps_name} = {total}, and groups of "
        f"`training.num_generations: {group}` don't divide them",
        remedy=f"Nearest that do: {steps_name} {more}, or {_BATCH} {larger}{groups}.",
    )


def _next_multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def _check_evaluation_groups(given: _Settings) -> None:
    if given["eval_strategy"] == "no":
        return
    batch, group = given["per_device_eval_batch_size"], given["num_generations_eval"] or given["num_generations"]
    if batch % group:
        nearest = -(-batch // group) * group
        raise RecipeError(
            f"`training.per_device_eval_batch_size` is {batch}, and groups of {group} answers don't divide it",
            remedy=f"Set it to {nearest}, or `training.num_generations_eval` to a divisor of {batch}.",
        )


def _check_vllm(recipe: Recipe) -> None:
    """Refuse vLLM where it is missing, and on CPUs (`check_sampling` knows what `auto` found)."""
    if importlib.util.find_spec("vllm") is None:
        raise SetupError(
            "`training.use_vllm`: vllm is not installed",
            remedy="pip install vllm, or leave it out: llmkit samples with transformers.",
        )
    if recipe.hardware.device == "cpu":
        raise _no_vllm_on_cpus()


def _no_vllm_on_cpus() -> SetupError:
    return SetupError(
        "`training.use_vllm`: on CPUs TRL can't hand the trained weights to vLLM",
        remedy="Leave it out: llmkit samples with transformers.",
    )


def policy_kwargs(job: Job) -> dict[str, Any]:
    """Return the keyword arguments of GRPOConfig or RLOOConfig, with what llmkit itself sets."""
    kwargs = job.training_kwargs()
    kwargs["reward_weights"] = [reward.weight for reward in job.recipe.rewards]
    # The one column, `row`, is no argument of the model.
    kwargs["remove_unused_columns"] = False
    beta = kwargs.get("beta", fields.describe(job.recipe.method.config)["beta"].default)
    if job.recipe.adapter is None and beta != 0:
        # TRL loads the reference of full training by name: it must be the revision that is trained, and as safely.
        kwargs["model_init_kwargs"] = _reference_kwargs(job)
    return kwargs


def _reference_kwargs(job: Job) -> dict[str, Any]:
    model = job.recipe.model
    kwargs: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if model.revision:
        kwargs["revision"] = model.revision
    if not model.allow_pickle:
        kwargs["use_safetensors"] = True
    return kwargs


def prompt_dataset(job: Job, *, held_out: bool) -> Dataset:
    """Return one split as the indices `row` of its rows, counted through the training and then the held-out rows.

    Prompts and rewards are found by that index: a data set would fill in what some rows lack, and change types.
    """
    from datasets import Dataset

    train, evaluation = job.splits.train, job.splits.eval
    rows, start = (evaluation, len(train)) if held_out else (train, 0)
    return Dataset.from_dict({"row": list(range(start, start + len(rows)))})


def check_rows(job: Job, args: Any) -> None:
    """Refuse rows that would train nothing: fewer prompts than one generation takes, or no room left for an answer.

    Raises DataError. Says how many rows each epoch leaves out.
    """
    prompts, rows = args.generation_batch_size // args.num_generations, len(job.splits.train)
    if rows < prompts:
        raise DataError(
            f"each step samples answers to {prompts} prompts ({args.generation_batch_size} completions in groups of "
            f"{args.num_generations}), and there are only {rows} rows: not one step would be taken",
            remedy=f"Add rows, or set `training.{_BATCH}` and `training.{_STEPS}` lower.",
        )
    if rows % prompts:
        job.narrate(f"{rows % prompts} of {rows} rows are left out of each epoch: a step takes {prompts} prompts")
    kinds = {isinstance(row.example["prompt"], str): row.where for row in (*job.splits.train, *job.splits.eval)}
    if len(kinds) > 1:
        raise DataError(f"{kinds[True]} has text as its prompt and {kinds[False]} messages: TRL takes one or the other")
    room = getattr(job.model.config, "max_position_embeddings", None)
    for row in job.splits.train:
        length = len(row.tokens.get("prompt_ids", ()))
        if room is not None and length + args.max_completion_length > room:
            raise DataError(
                f"the prompt has {length} tokens, which with `training.max_completion_length` "
                f"{args.max_completion_length} is more than the model's {room} positions",
                where=row.where,
                remedy="Lower training.max_completion_length, or remove the row.",
            )


def check_sampling(job: Job, args: Any) -> None:
    """Refuse vLLM on CPUs, and continuous batching with autocast: it casts the trained weights to 16 bits, for good.

    Raises SetupError or RecipeError. (TRL 1.16, `_generate_single_turn`: `unwrapped_model.to(torch.bfloat16)`)
    """
    if args.use_vllm and job.plan.hardware.kind == "cpu":
        raise _no_vllm_on_cpus()
    if args.use_transformers_continuous_batching and (args.bf16 or args.fp16):
        name = "bf16" if args.bf16 else "fp16"
        raise RecipeError(
            f"`training.use_transformers_continuous_batching` with `training.{name}` casts the trained weights to 16 "
            "bits for good, where small updates vanish",
            remedy=f"Set `training.{name}: false`, or leave continuous batching out.",
        )


def full_reward(job: Job) -> float | None:
    """Return what the golden answer to the first row earns, or None where some reward knows no golden answer.

    Raises RunError if a reward can't score it: before anything is sampled.
    """
    row, rewards = job.splits.train[0], job.recipe.rewards
    golden = [reward.golden(row.example) for reward in rewards]
    if any(answer is None for answer in golden):
        return None
    parts = [score_part(reward, [str(answer)], [row]) for reward, answer in zip(rewards, golden, strict=True)]
    return total(rewards, parts)[0]
