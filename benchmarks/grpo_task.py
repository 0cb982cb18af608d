"""GRPO on a reasoning-gym task: the mean reward must at least double within 60 steps, for three seeds out of three.

    python benchmarks/grpo_task.py

Compared are the mean over the first five steps and over the last five; the KL of every step stays under the recipe's
`method.max_kl`, or the run would have stopped.
"""

from __future__ import annotations

from figures import ends, keep, run

SEEDS = (1, 2, 3)


def main() -> None:
    """Run the recipe for each seed and keep the figures."""
    figures = {}
    for seed in SEEDS:
        found = run("grpo_smollm2", f"training.seed={seed}", name=f"grpo-{seed}")
        first, last = ends(found["metrics"], "reward")
        kl = max(entry["kl"] for entry in found["metrics"] if entry.get("kl") is not None)
        figures[f"seed {seed}"] = {
            "reward of the first 5 steps": first,
            "reward of the last 5 steps": last,
            "ratio": last / first,
            "largest kl": kl,
            "held out, base": found["base"],
            "held out, tuned": found["tuned"],
            "seconds": found["seconds"],
        }
    keep("grpo_task", figures, passed=all(values["ratio"] >= 2 for values in figures.values()))


if __name__ == "__main__":
    main()
