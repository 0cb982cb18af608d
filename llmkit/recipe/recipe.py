"""The sections of a recipe. Nothing here, nor in any variant file, imports torch.

Sections that have kinds (`method`, `adapter`, `quantization`, `rewards`, `evaluation`, `export`) are unions of the
Specs found in their own rooms (`union_of`), so that a new method or export target is one new file and no change here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, PrivateAttr, Tag, field_validator, model_validator

from llmkit.errors import LlmkitError, SetupError
from llmkit.recipe import fields
from llmkit.recipe.functions import spelled
from llmkit.recipe.gates import parse_gate
from llmkit.recipe.problems import shortened
from llmkit.recipe.spec import KeyPath, LibrarySpec, Spec, union_of, variant_names

if TYPE_CHECKING:
    from llmkit.evaluation.base import Evaluation as AnyEvaluation
    from llmkit.exports.base import Export as AnyExport
    from llmkit.methods.base import Method as AnyMethod
    from llmkit.model.adapters.base import Adapter as AnyAdapter
    from llmkit.model.quantization.base import Quantization as AnyQuantization
    from llmkit.rewards.base import Reward as AnyReward
else:
    AnyMethod = union_of("llmkit.methods")
    AnyAdapter = union_of("llmkit.model.adapters")
    AnyQuantization = union_of("llmkit.model.quantization")
    AnyEvaluation = union_of("llmkit.evaluation")
    AnyExport = union_of("llmkit.exports")
    AnyReward = union_of("llmkit.rewards")


def _share_or_sources(value: Any) -> str:
    return "sources" if isinstance(value, (list, tuple)) else "share"


# Strict types everywhere, but YAML has lists where the frozen recipe holds tuples.
Sources = Annotated[tuple["Source", ...], Field(min_length=1, strict=False)]
HeldOut = Annotated[
    Annotated[float, Tag("share")] | Annotated[Sources, Tag("sources")], Discriminator(_share_or_sources)
]


class Model(Spec):
    """The base model and how it is loaded."""

    name: str = Field(min_length=1)
    """Hub id, local folder, adapter folder to continue from, `.gguf` file, or `package:NAME` (weights in a package)."""

    revision: str | None = None
    """Commit, tag or branch of a hub model; pin a commit for a run that can be repeated."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Data type of the weights; the planner chooses by hardware when it is not set."""

    attn_implementation: str | None = None
    """Attention kernel by transformers' name (`sdpa`, `eager`, `flash_attention_2`); the planner's choice if unset."""

    chat_template: str | None = None
    """Path of a Jinja file that replaces the tokenizer's chat template."""

    eos_token: str | None = None
    """End token, where the tokenizer's own is not the one that the chat template ends a turn with."""

    trust_remote_code: bool = False
    """Run Python code that comes with this very model; never on unless set here."""

    allow_pickle: tuple[str, ...] = Field(default=(), strict=False)
    """Names of pickled weight files (e.g. `pytorch_model.bin`) that may be loaded although unpickling runs code."""


class Source(Spec):
    """One set of rows."""

    path: str = Field(min_length=1)
    """Local .jsonl, .json, .csv, .tsv, .txt or .parquet file, hub id, `made:NAME` (llmkit generates it),
    `reasoning_gym:TASK` (that package generates it), or `package:NAME/FILE`."""

    format: str = "auto"
    """How a row is laid out: the name of a file in `llmkit/data/formats/`; `auto` recognises it by the columns."""

    columns: dict[str, str] = {}
    """What the format calls a column, and what the rows call it (`prompt: question`), or a Jinja line over the row's
    columns (`prompt: "{{ question }} {{ context }}"`)."""

    header: tuple[str, ...] = Field(default=(), strict=False)
    """Names of the columns of a .csv or .tsv file whose first line is a row already, or of a .txt file with tabs."""

    python: str | None = None
    """`file.py:function` that makes of a row one in the format's columns, or None for a row to be left out."""

    split: str | None = None
    """Split of a hub or generated data set; `train` if unset."""

    name: str | None = None
    """Configuration of a hub data set that has several."""

    revision: str | None = None
    """Commit, tag or branch of a hub data set."""

    max_rows: int | None = Field(default=None, ge=1)
    """Use only the first rows."""

    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Share of the rows that this source has in the mix, relative to the other sources' weights."""

    repeat: int = Field(default=1, ge=1)
    """How often each row may be used in an epoch."""

    streaming: bool = False
    """Read the rows while training goes on (sets larger than memory or disk); needs `training.max_steps`."""

    options: dict[str, Any] = {}
    """Settings of a reasoning_gym task (`size`, `seed`, ranges), as its own configuration names them."""

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        return fields.one_of(value, ("auto", *variant_names("llmkit.data.formats")))

    @field_validator("header")
    @classmethod
    def _distinct_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(name.strip() for name in value) or len(set(value)) < len(value):
            raise ValueError(f"must name the columns, each once, not {', '.join(map(repr, value))}")
        return value

    @field_validator("python")
    @classmethod
    def _spelled_function(cls, value: str | None) -> str | None:
        return value if value is None else spelled(value)


CHECKS = (
    "answer_length",
    "broken_text",
    "contamination",
    "contradictions",
    "doubled_end",
    "duplicates",
    "echo",
    "end_token",
    "labels",
    "near_duplicates",
    "no_generation_prompt",
    "no_start",
    "overlap",
    "pad_token",
    "same_answers",
    "same_prompt",
    "special_tokens",
    "start_token",
    "system_lost",
    "system_twice",
    "template_tokens",
    "trained_prompt",
    "trained_tokens",
    "truncated",
    "unknown_tokens",
    "untrained_row",
)
"""Names of the checks of the rows (`llmkit.data.audit`)."""


class Audit(Spec):
    """From where on the checks of the rows stop a run; what stays below is said as a warning."""

    rows: int = Field(default=20_000, ge=1, le=1_000_000)
    """Rows of each split whose texts are looked at, evenly spread; the tokens of all rows are."""

    duplicates: float = Field(default=0.5, ge=0, le=1)
    """Share of training rows that repeat an earlier one."""

    near_duplicates: float = Field(default=0.8, ge=0, le=1)
    """Share of different training rows that are almost the same as another one."""

    overlap: float = Field(default=0.5, ge=0, le=1)
    """Share of held-out rows that are almost the same as a training row."""

    similarity: float = Field(default=0.8, ge=0.5, le=1)
    """Jaccard similarity, of runs of three words, from which two rows are almost the same."""

    contamination: float = Field(default=0.1, ge=0, le=1)
    """Share of a benchmark's rows that stand in training rows."""

    ngram: int = Field(default=13, ge=8, le=100)
    """Words of a run by which a benchmark's texts are looked for."""

    benchmarks: tuple[Source, ...] = Field(default=(), strict=False)
    """More rows to look for in the training rows, of any columns, beside those that the recipe scores with."""

    same_answers: float = Field(default=0.99, ge=0, le=1)
    """Share of training rows that have one and the same answer."""

    echo: float = Field(default=0.9, ge=0, le=1)
    """Share of training rows whose answer repeats the question."""

    special_tokens: float = Field(default=0.5, ge=0, le=1)
    """Share of training rows with control tokens of the tokenizer in their text."""

    doubled_end: float = Field(default=0.5, ge=0, le=1)
    """Share of rows that end with two end tokens."""

    broken_text: float = Field(default=0.5, ge=0, le=1)
    """Share of training rows with damaged characters."""

    unknown_tokens: float = Field(default=0.1, ge=0, le=1)
    """Share of tokens that are the tokenizer's unknown token."""

    truncated: float = Field(default=0.9, ge=0, le=1)
    """Share of rows that are cut off, so that the model does not see how they end."""

    accept: tuple[str, ...] = Field(default=(), strict=False)
    """Names of checks whose findings are meant to be so: they are said and stop nothing."""

    @field_validator("accept")
    @classmethod
    def _known_checks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(fields.one_of(name, CHECKS) for name in value)


class Data(Spec):
    """What is learnt from, and what is held out."""

    train: Sources
    """The rows to learn from; several sources are joined."""

    eval: HeldOut | None = None
    """Held-out rows: a share of the training rows (0.02), or sources of their own."""

    overflow: Literal["drop", "truncate", "split", "error"] = "drop"
    """What happens to a row of more than `training.max_length` tokens; every one of them is counted in the ledger."""

    train_on: Literal["all", "last", "marked"] = "all"
    """Which turns of the assistant are trained: all, the last one, or those with `train: true` (or a `weight`)."""

    reasoning: Literal["keep", "last", "cut"] = "keep"
    """Reasoning traces (`reasoning_content`, or `<think>...</think>`): kept, kept after the last question, or cut."""

    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Draws from the sources in proportion to (rows ^ (1 / temperature)): above 1, small sources count for more."""

    shuffle_buffer: int = Field(default=10_000, ge=1)
    """Rows of a stream among which the next one is chosen."""

    broken: float = Field(default=0.01, ge=0, le=1)
    """Share of a source's rows that may be broken; they are left out and listed in `quarantine.jsonl`."""

    audit: Audit = Audit()
    """What the checks of the rows refuse."""

    @property
    def streaming(self) -> bool:
        """Whether the training rows are read while training goes on."""
        return any(source.streaming for source in self.train)

    @field_validator("eval")
    @classmethod
    def _share(cls, value: Any) -> Any:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError(f"a share of the training rows must lie between 0 and 1, not {value:g}")
        return value


class Training(LibrarySpec):
    """Fields of TrainingArguments and of the method's TRL config, by their own names."""

    # Checked by `Recipe`, because the method decides which config class it is.
    reserved: ClassVar[dict[str, str]] = {
        "output_dir": "the run folder is chosen with `llmkit run RECIPE --out FOLDER`",
        "resume_from_checkpoint": "use `llmkit run RECIPE --resume`",
        "model_init_kwargs": "use the `model` section",
        "trust_remote_code": "use `model.trust_remote_code`",
        "chat_template_path": "use `model.chat_template`",
        "chat_template_kwargs": "use `model.chat_template`: scores and preflight must see the prompts that are trained",
        "eos_token": "use `model.eos_token`",
        "assistant_only_loss": "llmkit always trains on the assistant's turns of a conversation",
        "completion_only_loss": "llmkit always trains on the completion of a prompt_completion row",
        "dataset_text_field": "choose the data source's `format`",
        "dataset_kwargs": "llmkit prepares the rows itself; choose the data source's `format`",
        "reward_weights": "use the `weight` of each reward",
        "truncation_mode": "use `data.overflow`",
        "use_cpu": "use `hardware.device: cpu`",
        "no_cuda": "use `hardware.device: cpu`",
        "use_mps_device": "use `hardware.device: mps`",
        "do_train": "`llmkit run` always trains",
        "do_eval": "use the `evaluation` section",
        "do_predict": "use the `evaluation` section",
        "push_to_hub": "llmkit uploads nothing by itself",
        "save_total_limit": "use `checkpoints.keep`",
        "save_only_model": "a checkpoint that can't be continued is none; `model/` in the run folder has the weights",
        "enable_jit_checkpoint": "llmkit writes a checkpoint on SIGTERM, SIGINT and SIGUSR1 by itself",
        "logging_nan_inf_filter": "it would hide a loss that is not finite; use `stability`",
        "ignore_data_skip": "a resumed run sees the rows that the straight one would have seen",
        "restore_callback_states_from_checkpoint": "`--resume` always restores them",
        "log_completions": "use `llmkit run --watch`; `samples.jsonl` in the run folder has them",
        "disable_tqdm": "llmkit draws its own progress",
    }


class Limits(Spec):
    """What a run may take: training that reaches a limit ends there, with a checkpoint that `--resume` continues."""

    hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Hours of one session, from its start to the end of training; `--resume` gives as many again. Scoring the tuned
    model and exporting it come on top."""

    tokens: int | None = Field(default=None, gt=0)
    """Tokens to learn from, without padding, over all sessions."""


class Keep(Spec):
    """Which checkpoints stay on disk; all others are removed when a newer one is whole."""

    last: int = Field(default=2, ge=1)
    """The newest ones. With two, one that turns out to be damaged costs no more than the steps between them."""

    best: int = Field(default=0, ge=0)
    """Those that scored best by `training.metric_for_best_model` (the evaluation loss if unset) while training."""

    every: int | None = Field(default=None, ge=1)
    """Also each one whose step is a multiple of this."""


class Checkpoints(Spec):
    """The checkpoints that `--resume` goes on from; `training.save_strategy` and `save_steps` say when."""

    keep: Keep = Keep()
    """Which of them stay on disk."""


class Stability(Spec):
    """What happens when a loss or a gradient is not a finite number."""

    on_nan: Literal["stop", "skip"] = "stop"
    """`stop` ends the run before the weights are touched; `skip` leaves the step out, and says so."""

    max_skips: int = Field(default=10, ge=1)
    """Steps that `skip` may leave out, over the whole run; the next one stops it."""


class HardwareChoice(Spec):
    """Where to run; a recipe that leaves it out runs on the best device found."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`cuda` and `mps` are errors where there is none; `auto` takes the best device."""


def _is_gate(text: str) -> str:
    parse_gate(text)
    return text


Gate = Annotated[str, AfterValidator(_is_gate)]


class Recipe(Spec):
    """One run: a base model, data and a method."""

    model: Model
    """The base model and how it is loaded."""

    data: Data
    """What is learnt from, and what is held out."""

    method: AnyMethod
    """How it learns."""

    adapter: AnyAdapter | None = None
    """What is trained beside frozen weights; without it, all weights are trained."""

    quantization: AnyQuantization | None = None
    """How the frozen weights are held; without it, in `model.dtype`."""

    training: Training = Training()
    """Fields of TrainingArguments and of the method's TRL config."""

    rewards: tuple[AnyReward, ...] = Field(default=(), strict=False)
    """What a completion is worth, for the methods that learn from rewards; their weighted sum counts."""

    evaluation: tuple[AnyEvaluation, ...] = Field(default=(), strict=False)
    """What the base and the tuned model are scored by, on the held-out rows."""

    gates: tuple[Gate, ...] = Field(default=(), strict=False)
    """What the tuned model's scores must hold, as `exact_match >= 0.9` or `f1 >= base - 0.01`; decided by the end of
    the 95% interval that is against it. Where one is missed, nothing is exported and the exit code is 3."""

    export: tuple[AnyExport, ...] = Field(default=(), strict=False)
    """What is written at the end, each checked against the trained model."""

    limits: Limits = Limits()
    """What the run may take; a run that is resumed may have other limits than before."""

    checkpoints: Checkpoints = Checkpoints()
    """What `--resume` goes on from."""

    stability: Stability = Stability()
    """What happens when a loss or a gradient is not a finite number."""

    hardware: HardwareChoice = HardwareChoice()
    """Where to run."""

    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _written: str = PrivateAttr(default="")
    _origin: Callable[[KeyPath], str] = PrivateAttr(default_factory=lambda: lambda path: "recipe")

    @property
    def folder(self) -> Path:
        """Folder that relative paths start from: the recipe file's, or the current one for a recipe made in Python."""
        return self._folder

    @property
    def written(self) -> str:
        """The recipe as YAML text, as it was written, with `extends` and overrides merged in."""
        return self._written or json.dumps(self.model_dump(exclude_unset=True), indent=2) + "\n"

    @property
    def evaluated(self) -> tuple[Source, ...]:
        """The rows that evaluations have of their own, beside the held-out ones."""
        found = (getattr(evaluation, "data", None) for evaluation in self.evaluation)
        return tuple(source for source in found if source is not None)

    def origin(self, path: KeyPath) -> str:
        """Return who set the value at `path`: `file:line`, `--set a.b=c`, or `recipe` for one made in Python."""
        return self._origin(path)

    @contextmanager
    def at(self, *path: str | int) -> Iterator[None]:
        """Name the place of `path` in what a check says that knows its own section alone, or the system of a file."""
        try:
            yield
        except LlmkitError as error:
            place = self.origin(path)
            error.what = shortened(error.what)
            error.where = f"{place}: {shortened(error.where)}" if error.where else place
            raise
        except OSError as error:
            raise SetupError(f"{error.filename} can't be read: {error.strerror}", where=self.origin(path)) from error

    def placed(
        self, folder: Path, written: str | None = None, origin: Callable[[KeyPath], str] | None = None
    ) -> Recipe:
        """Return this recipe with relative paths starting from `folder`, and where it was read from."""
        copy = self.model_copy()
        copy._folder = folder
        copy._written = written or self._written
        copy._origin = origin or self._origin
        return copy

    @model_validator(mode="after")
    def _training_fields(self) -> Recipe:
        fields.check(self.method.config, self.training.kwargs(), reserved=Training.reserved, path=("training",))
        return self
