"""GRPO on a reasoning-gym task: the mean reward must at least double within 60 steps, for three seeds out of three.

    python benchmarks/grpo_task.py

Compared is the mean over the last five steps with that over the first five. The KL stays under the recipe's
`method.max_kl`, or the run would have stopped: three steps in a row beyond it do that. The held-out rows are answered
greedily; always the same answer would earn 0.56 there.
"""

from __future__ import annotations

from statistics import median

from figures import ends, keep, run

SEEDS = (1, 2, 3)


def main() -> None:
    """Run the recipe for each seed and keep the figures."""
    figures = {}
    for seed in SEEDS:
        found = run("grpo_smollm2", f"training.seed={seed}", name=f"grpo-{seed}")
        first, last = ends(found["metrics"], "reward")
        kl = [entry["kl"] for entry in found["metrics"] if entry.get("kl") is not None]
        figures[f"seed {seed}"] = {
            "reward of the first 5 steps": first,
            "reward of the last 5 steps": last,
            "ratio": last / max(first, 1e-6),
            "kl, median of the last 5 steps": median(kl[-5:]),
            "kl, largest of a step": max(kl),
            "held out, base": found["base"],
            "held out, tuned": found["tuned"],
            "seconds": found["seconds"],
        }
    keep("grpo_task", figures, passed=all(values["ratio"] >= 2 for values in figures.values()))


if __name__ == "__main__":
    main()
