"""A reward model must order 65% of held-out pairs rightly, and GRPO with it must raise its score.

python benchmarks/reward_model.py
"""

from __future__ import annotations

from figures import ends, keep, run

BOUND = 0.65


def main() -> None:
    """Train the reward model, then a policy with it, and keep the figures."""
    judge = run("reward_smollm2", name="reward")
    policy = run(
        "grpo_smollm2",
        "data.train=[{path: made:units, format: prompt, split: train}]",
        "data.eval=[{path: made:units, format: prompt, split: test, max_rows: 32}]",
        f"rewards=[{{type: reward_model, path: {judge['folder']}}}]",
        "training.max_steps=16",
        "training.max_completion_length=16",
        "evaluation=[{type: reward, max_new_tokens: 16}]",
        name="grpo-reward-model",
    )
    first, last = ends(policy["metrics"], "reward")
    accuracy = judge["tuned"]["preference_accuracy"]
    figures = {
        "reward model, base (random head)": judge["base"],
        "reward model, tuned": judge["tuned"],
        "reward model, seconds": judge["seconds"],
        "policy, reward of the first 5 steps": first,
        "policy, reward of the last 5 steps": last,
        "policy, held out, base": policy["base"],
        "policy, held out, tuned": policy["tuned"],
        "policy, seconds": policy["seconds"],
    }
    keep("reward_model", figures, passed=accuracy >= BOUND and last > first)


if __name__ == "__main__":
    main()
