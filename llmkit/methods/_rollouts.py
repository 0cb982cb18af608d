"""TRL's GRPO and RLOO trainers, watched: times, samples, checked rewards and call-outs. The loss is TRL's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import RepeatSampler

from llmkit.errors import RunError
from llmkit.methods._kept_rollouts import read_rollouts, write_rollouts
from llmkit.methods._policy import full_reward
from llmkit.methods._signals import Signals
from llmkit.methods._trained_head import score_trained_positions
from llmkit.methods.base import Job
from llmkit.rewards.base import Reward, score_part

if TYPE_CHECKING:
    # What the mixin is mixed into; both trainers have the attributes that it uses.
    from trl import GRPOTrainer as _Trainer
else:
    _Trainer = object

PATIENCE = 3
"""Logged steps beyond `max_kl` that stop a run. The estimate of one step is heavy-tailed: a sampled token that has
become unlikely weighs exp(log-ratio), so one token can make a step's mean."""

SAMPLES = 4
"""Completions of each generation that are kept: the best and the worst of the first group, and two more."""


class EachEpoch(RepeatSampler):
    """TRL's sampler, with an order that depends on the seed and the epoch alone.

    Its own draws each epoch's order after that of the epoch before: a run that goes on in a later one would begin with
    the first order again.
    """

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch; accelerate's loader says which one it is."""
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)


class _Rollouts(_Trainer):
    """Mixin over both trainers, which have the same methods. One process only (llmkit runs no more)."""

    def __init__(self, job: Job, max_kl: float | None, **kwargs: Any) -> None:
        self._job, self._max_kl = job, max_kl
        self._rows = (*job.splits.train, *job.splits.eval)
        self._texts: list[str] = []
        self._prompt_ids: list[list[int]] = []
        self._beyond = 0
        self._seconds = {"generate": 0.0, "score": 0.0, "learn": 0.0}
        scorers = [self._scorer(reward) for reward in job.recipe.rewards]
        super().__init__(reward_funcs=scorers, **kwargs)
        score_trained_positions(self.model)
        score_trained_positions(getattr(self, "ref_model", None))
        self._signals = Signals(self.num_generations, full_reward(job), self.max_completion_length)
        self._caught_up = False
        dropout = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in self.model.modules())
        if dropout and not self.args.disable_dropout:
            job.narrate("answers are sampled with dropout on; `training.disable_dropout: true` turns it off")

    def _scorer(self, reward: Reward) -> Callable[..., list[float]]:
        def score(row: list[int], **_: Any) -> list[float]:
            return score_part(reward, self._texts, [self._rows[index] for index in row])

        # TRL logs a part under the name of its function.
        score.__name__ = reward.name
        return score

    # --- Time ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Count the time of a part of training; answers to evaluation rows are not counted."""
        began = time.perf_counter()
        yield
        if self.model.training:
            self._seconds[part] += time.perf_counter() - began

    def _generate(self, *args: Any) -> Any:
        with self._timed("generate"):
            return super()._generate(*args)

    def training_step(self, *args: Any) -> Any:
        """Do what TRL does, and split its `step_time` into generate, score and learn (everything else)."""
        before, began = sum(self._seconds.values()), time.perf_counter()
        output = super().training_step(*args)
        within = sum(self._seconds.values()) - before
        self._seconds["learn"] += time.perf_counter() - began - within
        if self.accelerator.sync_gradients:
            for part, seconds in self._seconds.items():
                self._metrics["train"][f"time/{part}"].append(seconds)
                self._seconds[part] = 0.0
        return output

    # --- Rewards and samples -----------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> torch.Tensor:
        tools = bool(getattr(self, "tools", None))
        self._texts = last_answers(completions) if tools else self._decoded(completion_ids)
        with self._timed("score"):
            parts_NK: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        broken = (~torch.isfinite(parts_NK)).nonzero()
        if len(broken):  # an environment's own reward, which TRL would leave out in silence
            index, part = broken[0].tolist()
            raise RunError(
                f"reward `{self.reward_func_names[part]}` returned {parts_NK[index, part].item()}",
                where=self._rows[inputs[index]["row"]].where,
                remedy="It must return a finite number for each completion.",
            )
        return parts_NK

    def _decoded(self, completion_ids: Sequence[Sequence[int]]) -> list[str]:
        # Not TRL's messages: a tokenizer with a response template would have its thoughts taken out of the answer.
        texts: list[str] = self._tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        return texts

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = [{**x, "prompt": self._rows[x["row"]].example["prompt"]} for x in inputs]
        self._prompt_ids = [list(self._rows[x["row"]].tokens["prompt_ids"]) for x in inputs]
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.model.training:
            parts = {name: list(values)[-len(inputs) :] for name, values in self._logs["rewards"].items()}
            totals = self._totals(parts)
            # TRL's share is that of the batch with `scale_rewards: batch`: a group is what is compared.
            self._metrics["train"]["frac_reward_zero_std"][-1] = silent_groups(totals, self.num_generations)
            self._job.keep_samples(self._chosen(inputs, parts, totals))
        return output

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        if getattr(self, "tools", None):  # their descriptions are part of the prompt
            found: tuple[list[list[int]], None, dict[str, Any]] = super()._tokenize_prompts(prompts)
            return found
        # The tokens that were audited and that the evaluations see, with the row's own `tools` in them.
        return self._prompt_ids, None, {}

    def _totals(self, parts: Mapping[str, Sequence[float]]) -> list[float]:
        weights = self.reward_weights.tolist()
        return [
            sum(w * v for w, v in zip(weights, values, strict=True)) for values in zip(*parts.values(), strict=True)
        ]

    def _chosen(
        self, inputs: list[dict[str, Any]], parts: Mapping[str, Sequence[float]], totals: Sequence[float]
    ) -> list[dict[str, Any]]:
        advantages = list(self._logs["advantages"])[-len(inputs) :]
        completions = list(self._logs["completion"])[-len(inputs) :]
        samples = []
        for index in chosen(totals, self.num_generations):
            row = self._rows[inputs[index]["row"]]
            sample = {
                "step": self.state.global_step + 1,
                "where": row.where,
                "prompt": asked(row.example["prompt"]),
                "completion": self._texts[index],
                # Six decimals: more than that is what float32 adds.
                "rewards": {name: round(values[index], 6) for name, values in parts.items()},
                "reward": round(totals[index], 6),
                "advantage": round(advantages[index], 6),
            }
            if isinstance(completions[index], list) and len(completions[index]) > 1:
                sample["messages"] = completions[index]
            samples.append(sample)
        return samples

    # --- Checkpoints -------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> EachEpoch:
        trls = super()._get_train_sampler(dataset)
        names = ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")
        return EachEpoch(**{name: getattr(trls, name) for name in names})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        # Between two generations nothing is left to learn from: the next batch is sampled.
        within = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        checkpoint = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        write_rollouts(checkpoint, self._step, (self._buffered_inputs or []) if within else [])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._step, batches = read_rollouts(Path(resume_from_checkpoint), self.accelerator.device)
        self._buffered_inputs = batches or None

    # --- Logs --------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, write the samples, and say what the numbers give away; raises RunError beyond `max_kl`."""
        step = self.state.global_step
        if not self._caught_up:
            # A run that goes on from a checkpoint has said what it had to say about the steps before it.
            for entry in self.state.log_history:
                self._signals.observe(entry["step"], entry)
                if self._max_kl is not None and "loss" in entry and "kl" in entry:
                    self._count(self._max_kl, entry["kl"])
            self._caught_up = True
        super().log(logs, start_time)
        if "loss" not in logs:
            return
        for line in self._signals.observe(step, logs):
            self._job.narrate(line)
        if self._max_kl is not None and "kl" in logs:
            self._hold(self._max_kl, logs["kl"], step)

    def _count(self, bound: float, kl: float | None) -> None:
        self._beyond = self._beyond + 1 if kl is None or kl > bound else 0

    def _hold(self, bound: float, kl: float | None, step: int) -> None:
        """Raise RunError where the divergence is no number, or has been beyond `bound` for some steps in a row."""
        self._count(bound, kl)
        # TRL logs None where all values are NaN: a run that has diverged.
        if kl is not None and self._beyond < PATIENCE:
            return
        found = "not a number" if kl is None else f"{kl:.4g} nats per token, for {PATIENCE} steps in a row"
        raise RunError(
            f"the KL divergence from the reference is {found}, at step {step}: beyond `method.max_kl: {bound:g}`",
            remedy="Lower `training.learning_rate`, or raise `training.beta` or the bound. The run folder has the "
            "checkpoints of earlier steps.",
        )


class WatchedGRPOTrainer(_Rollouts, GRPOTrainer):
    """TRL's GRPOTrainer, watched."""


class WatchedRLOOTrainer(_Rollouts, RLOOTrainer):
    """TRL's RLOOTrainer, watched."""


def silent_groups(totals: Sequence[float], group: int) -> float:
    """Return the share of groups of `group` neighbours whose rewards are all the same."""
    groups = [totals[start : start + group] for start in range(0, len(totals), group)]
    same = sum(max(values) - min(values) <= 1e-6 * max(1.0, abs(values[0])) for values in groups)
    return same / len(groups)


def chosen(totals: Sequence[float], group: int) -> list[int]:
    """Return the indices of the samples to keep: best and worst of the first group, then the first two others."""
    first = range(min(group, len(totals)))
    best, worst = max(first, key=totals.__getitem__), min(first, key=totals.__getitem__)
    others = [*range(group, len(totals)), *first]
    return list(dict.fromkeys([best, worst, *others]))[:SAMPLES]


def asked(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """Return the text that a prompt asks for an answer to: the last user's message, or the string itself."""
    if isinstance(prompt, str):
        return prompt
    return str(next(message["content"] for message in reversed(prompt) if message["role"] == "user"))


def last_answers(completions: Sequence[str | Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return what is rewarded of conversations with tools: the last message of each that the model itself wrote."""
    return [
        text
        if isinstance(text, str)
        else next((str(m.get("content") or "") for m in reversed(text) if m["role"] == "assistant"), "")
        for text in completions
    ]
