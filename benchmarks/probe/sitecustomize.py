"""Times the steps of whatever trains in this process; Python imports this file where PYTHONPATH names its folder.

`speed.py` starts the command lines of TRL and llmkit as their users do, so what is measured can't be asked for in
code. With SPEED_RECORD set, a callback is added to each transformers Trainer, and llmkit's answering is timed. The
record is a JSON file: the seconds since SPEED_STARTED (the clock when the command was started), the tokens of each
step and the peak memory. What a step costs by this is a forward hook and a file of a few kilobytes.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.abc import MetaPathFinder
from typing import Any

RECORD, STARTED = os.environ.get("SPEED_RECORD", ""), float(os.environ.get("SPEED_STARTED", "0"))
PROFILE, PROFILED_STEP = os.environ.get("SPEED_PROFILE", ""), 1


class Record:
    """What was measured in this process; written after each step, so that a run that is cut off leaves its steps."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"steps": [], "rewards": [], "threads": None}
        self._counted = {"rows": 0, "tokens": 0, "computed": 0}

    def count(self, rows: int, tokens: int, computed: int) -> None:
        """Add a batch that is trained on: rows, their real tokens, and the positions computed for them."""
        for name, more in (("rows", rows), ("tokens", tokens), ("computed", computed)):
            self._counted[name] += more

    def begins(self) -> None:
        """Note that the first step begins."""
        import torch

        if "begins" not in self.found:
            self.found.update(begins=time.time() - STARTED, threads=torch.get_num_threads())

    def step(self) -> None:
        """Note the end of an optimizer step."""
        self.found["steps"].append({"ends": time.time() - STARTED, **self._counted})
        self._counted = dict.fromkeys(self._counted, 0)
        self.found["peak_trained"] = peak()
        self.write()

    def write(self) -> None:
        """Write the record with the peak so far."""
        self.found.update(peak=peak(), ends=time.time() - STARTED)
        with open(f"{RECORD}.part", "w", encoding="utf-8") as file:
            json.dump(self.found, file)
        os.replace(f"{RECORD}.part", RECORD)


def peak() -> int:
    """Return the most bytes of memory that this process has had (VmHWM)."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def tokens_of(inputs: dict[str, Any]) -> tuple[int, int, int]:
    """Return rows, real tokens and computed positions of what a model is given; packed rows are told by positions."""
    ids, mask, positions = (inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    if mask is not None and mask.dim() == 2:
        return len(ids), int(mask.sum()), ids.numel()
    # Each row has one position 1, and padding has only positions 0.
    rows = int((positions == 1).sum())
    return rows, int((positions > 0).sum()) + rows, ids.numel()


KINDS = (
    ("matrix products", ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "4bit", "int8")),
    ("attention", ("attention",)),
    ("lookups and copies", ("copy", "index", "embedding", "cat", "clone", "to_copy", "gather", "scatter")),
)
"""Parts of the names of operators, by what they do; all others work element by element."""


@contextmanager
def _profiled() -> Iterator[None]:
    """Profile what happens inside; write the share of each kind of operator, and the 25 most costly ones."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        yield
    found = profiler.key_averages()
    seconds: dict[str, float] = {}
    for one in found:
        kind = next((kind for kind, names in KINDS if any(name in one.key for name in names)), "element by element")
        seconds[kind] = seconds.get(kind, 0.0) + one.self_cpu_time_total / 1e6
    whole = sum(seconds.values())
    shares = sorted(seconds.items(), key=lambda item: -item[1])
    line = ", ".join(f"{kind} {part / whole:.0%}" for kind, part in shares)
    with open(PROFILE, "w", encoding="utf-8") as file:
        file.write(f"{line} of {whole:.1f} s\n\n{found.table(sort_by='self_cpu_time_total', row_limit=25)}\n")


def _watch_trainers(module: Any) -> None:
    """Add the callback to each Trainer: `module` is transformers.trainer_callback."""
    import torch

    def count(model: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        # Sampling and references run without gradients.
        if torch.is_grad_enabled() and model.training:
            record.count(*tokens_of(named))

    class Probe(module.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
            model.register_forward_pre_hook(count, with_kwargs=True)
            atexit.register(record.write)

        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            record.begins()
            if PROFILE and state.global_step == PROFILED_STEP:
                self.profiled = ExitStack()
                self.profiled.enter_context(_profiled())

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if PROFILE and state.global_step == PROFILED_STEP + 1:
                self.profiled.close()
            record.step()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            record.found["rewards"] += [float(logs["reward"])] if "reward" in (logs or {}) else []

    build = module.CallbackHandler.__init__

    def build_with_probe(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        self.callbacks.append(Probe())

    module.CallbackHandler.__init__ = build_with_probe


def _watch_answers(module: Any) -> None:
    """Time llmkit's answering: `module` is llmkit.model.generation."""
    answer = module.generate

    def timed(model: Any, tokenizer: Any, prompts: Any, **kwargs: Any) -> Any:
        record.begins()
        with _profiled() if PROFILE else nullcontext():
            texts = answer(model, tokenizer, prompts, **kwargs)
        record.found["answers"] = list(texts)
        record.count(len(prompts), sum(len(tokenizer(text)["input_ids"]) for text in texts), 0)
        record.step()
        return texts

    module.generate = timed
    atexit.register(record.write)


class _After(MetaPathFinder):
    """Calls a function on a module right after it is imported."""

    def __init__(self, **hooks: Any) -> None:
        self.hooks = hooks

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        hook = self.hooks.pop(name, None)
        if hook is None:
            return None
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module  # type: ignore[union-attr]

        def load_and_hook(module: Any) -> None:
            load(module)
            hook(module)

        spec.loader.exec_module = load_and_hook  # type: ignore[union-attr, method-assign]
        return spec


record = Record()
if RECORD:
    hooks = {"transformers.trainer_callback": _watch_trainers, "llmkit.model.generation": _watch_answers}
    sys.meta_path.insert(0, _After(**hooks))
