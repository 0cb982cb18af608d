"""What is trained under the templates of well-known models: read `golden/*.txt`, where ⟦ and ⟧ enclose trained tokens.

`LLMKIT_WRITE_GOLDEN=1 pytest tests/data/test_templates.py` writes the files anew; read each line of the difference.
"""

from __future__ import annotations

import copy
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import AddedToken, PreTrainedTokenizerFast

from llmkit.data import templates, turns
from llmkit.data.masks import IGNORED
from llmkit.data.shapes import RowError, Shape
from llmkit.data.templates import chat_of, training_template
from llmkit.data.tokens import Rules, tokenize
from llmkit.errors import SetupError

HERE = Path(__file__).parent / "golden"
ALL, LAST, CUT = Rules(), Rules(train_on="last"), Rules(reasoning="cut")
LAST_KEPT = Rules(train_on="last", reasoning="last")

TURNS = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4 🙂."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes.\n\n    2 + 2 = 4"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
USE = [
    {"role": "user", "content": "Is it warm in Köln?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": '{"celsius": 24}'},
    {"role": "assistant", "content": "Yes, 24 °C."},
]


def thought(message: dict[str, Any], trace: str) -> dict[str, Any]:
    return {**message, "reasoning_content": trace}


def said_aloud(message: dict[str, Any], trace: str) -> dict[str, Any]:
    return {**message, "content": f"<think>\n{trace}\n</think>\n\n{message['content']}"}


REASONED = [TURNS[0], thought(TURNS[1], "Two and two."), TURNS[2], thought(TURNS[3], "Counted again.")]
ALOUD = [TURNS[0], said_aloud(TURNS[1], "Two and two."), TURNS[2], said_aloud(TURNS[3], "Counted again.")]
REASONED_USE = [USE[0], thought(USE[1], "Ask the tool."), USE[2], thought(USE[3], "24 is warm.")]


@dataclass(frozen=True)
class Case:
    title: str
    messages: list[dict[str, Any]]
    rules: Rules = ALL
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Family:
    """A model's template, and its tokens: `stops` end an answer, the first of them is the end token."""

    template: str
    stops: tuple[str, ...]
    start: str | None
    special: tuple[str, ...]
    cases: list[Case] = field(default_factory=list)


def trl_file(name: str) -> str:
    folder = templates._folder()
    assert folder is not None
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


CHAT = [
    Case("two turns", TURNS),
    Case("two turns after a system prompt", SYSTEM + TURNS),
    Case("the last", TURNS, LAST),
]
USED = [Case("a tool is used", USE, tools=TOOLS)]
CHATML = ("<|im_start|>", "<tool_call>", "</tool_call>", "<think>", "</think>")
DEEPSEEK = tuple(
    f"<｜{name}｜>"
    for name in (
        "User",
        "Assistant",
        *(f"tool▁{what}▁{end}" for what in ("calls", "call", "outputs", "output") for end in ("begin", "end")),
        "tool▁sep",
    )
)
FAMILIES = {
    "llama3": Family(
        trl_file("llama3"), ("<|eot_id|>",), "<|begin_of_text|>", ("<|start_header_id|>", "<|end_header_id|>"), CHAT
    ),
    "llama3_1": Family(
        trl_file("llama3_1"),
        ("<|eot_id|>", "<|eom_id|>"),
        "<|begin_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
        CHAT + USED,
    ),
    "qwen2_5": Family(trl_file("qwen2_5"), ("<|im_end|>",), None, CHATML, CHAT + USED),
    "qwen3": Family(
        trl_file("qwen3"),
        ("<|im_end|>",),
        None,
        CHATML,
        [
            *CHAT,
            *USED,
            Case("one turn", TURNS[:2]),
            Case("one turn with reasoning", REASONED[:2]),
            Case("one turn with reasoning in its text", ALOUD[:2]),
            Case("two turns with reasoning", REASONED),
            Case("two turns with reasoning, the last is trained", REASONED, LAST),
            Case("two turns with reasoning, cut, the last is trained", REASONED, Rules("last", "cut")),
            Case("a tool is used with reasoning", REASONED_USE, tools=TOOLS),
        ],
    ),
    # What the message of a refusal names: `model.chat_template: .../qwen3_training.jinja`.
    "qwen3_training": Family(
        trl_file("qwen3_training"),
        ("<|im_end|>",),
        None,
        CHATML,
        [
            CHAT[0],
            *USED,
            Case("two turns with reasoning", REASONED),
            Case("two turns with reasoning, kept in the last", REASONED, Rules(reasoning="last")),
        ],
    ),
    "gemma": Family(trl_file("gemma"), ("<end_of_turn>", "<eos>"), "<bos>", ("<start_of_turn>",), CHAT),
    "gemma3": Family(trl_file("gemma3"), ("<end_of_turn>", "<eos>"), "<bos>", ("<start_of_turn>",), CHAT),
    "mistral": Family(
        (HERE / "mistral.jinja").read_text(encoding="utf-8"),
        ("</s>",),
        "<s>",
        tuple(f"[{slash}{name}]" for name in ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS") for slash in ("", "/"))
        + ("[TOOL_CALLS]",),
        [
            *CHAT,
            *USED,
            Case("a tool is used after another turn", TURNS[:2] + USE, tools=TOOLS),
            Case("a tool is used after another turn, the last is trained", TURNS[:2] + USE, LAST, TOOLS),
        ],
    ),
    "phi3": Family(
        trl_file("phi3"), ("<|endoftext|>", "<|end|>"), None, ("<|user|>", "<|assistant|>", "<|system|>"), CHAT
    ),
    "phi3_5": Family(
        trl_file("phi3_5"), ("<|endoftext|>", "<|end|>"), None, ("<|user|>", "<|assistant|>", "<|system|>"), CHAT
    ),
    "smollm2": Family(
        (HERE / "smollm2.jinja").read_text(encoding="utf-8"),
        ("<|im_end|>",),
        "<|im_start|>",
        ("<|endoftext|>",),
        [
            *CHAT,
            Case("a tool is used", USE, tools=TOOLS),
            Case("reasoning in a key", REASONED),
            Case("reasoning in the text", ALOUD),
            Case("reasoning in the text, kept in the last turn", ALOUD, Rules(reasoning="last")),
            Case("reasoning in the text, cut", ALOUD, CUT),
        ],
    ),
    "deepseek_r1_distill": Family(
        trl_file("deepseek_r1_distill"),
        ("<｜end▁of▁sentence｜>",),
        "<｜begin▁of▁sentence｜>",
        (*DEEPSEEK, "<think>", "</think>"),
        [
            Case("one turn without reasoning", TURNS[:2]),
            Case("one turn with reasoning in its text", ALOUD[:2]),
            Case("two turns with reasoning in the text", ALOUD),
            Case("two turns with reasoning in the text, kept and trained in the last", SYSTEM + ALOUD, LAST_KEPT),
            Case("one turn with reasoning in a key", REASONED[:2]),
            Case("a tool is used", USE, tools=TOOLS),
        ],
    ),
    "deepseekv3": Family(
        trl_file("deepseekv3"),
        ("<｜end▁of▁sentence｜>",),
        "<｜begin▁of▁sentence｜>",
        (*DEEPSEEK, "<think>", "</think>"),
        [Case("two turns", TURNS), *USED, Case("a tool is used, the answer is trained", USE, LAST, TOOLS)],
    ),
}


def tokenizer_of(bpe: Any, special: Iterable[str], stops: Iterable[str], start: str | None) -> PreTrainedTokenizerFast:
    """Return the tiny byte-level tokenizer with a model's own special tokens."""
    stops = list(stops)
    made = PreTrainedTokenizerFast(tokenizer_object=copy.deepcopy(bpe), pad_token="<|pad|>")
    names = dict.fromkeys([*special, *stops, *([start] if start else [])])
    made.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    made.eos_token = stops[0]
    made.bos_token = start
    return made


def ids_of(tokenizer: PreTrainedTokenizerFast, names: Iterable[str]) -> frozenset[int]:
    return frozenset(tokenizer.convert_tokens_to_ids(list(names)))


def drawn(tokenizer: PreTrainedTokenizerFast, tokens: dict[str, list[int]]) -> str:
    """Return the tokens as text, with the trained ones between ⟦ and ⟧ and a sign at each line's end."""
    pieces = []
    pairs = zip(tokens["input_ids"], tokens["labels"], strict=True)
    for trained, run in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        text = tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
        pieces.append(f"⟦{text}⟧" if trained else text)
    return "".join(pieces).replace("\n", "↵\n")


def golden(bpe: Any, family: Family) -> str:
    tokenizer = tokenizer_of(bpe, family.special, family.stops, family.start)
    tokenizer.chat_template = family.template
    lines = [f"{training_template(tokenizer).note}\n"]
    for case in family.cases:
        example = {"messages": case.messages, **({"tools": case.tools} if case.tools else {})}
        lines.append(f"=== {case.title} (train_on: {case.rules.train_on}, reasoning: {case.rules.reasoning})")
        stops = ids_of(tokenizer, family.stops)
        try:
            (row,) = tokenize(tokenizer, Shape.CONVERSATION, [example], stops, case.rules)
        except SetupError as error:
            lines.append(f"stops: {error}\n")
            continue
        shown = f"refused: {row}" if isinstance(row, RowError) else drawn(tokenizer, row)
        lines.append(re.sub(r"/\S*/(\w+\.jinja)", r"\1", shown) + "\n")
    return "\n".join(lines)


@pytest.mark.parametrize("name", FAMILIES)
def test_golden(bpe: Any, name: str) -> None:
    path = HERE / f"{name}.txt"
    found = golden(bpe, FAMILIES[name])
    if os.environ.get("LLMKIT_WRITE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


TWINS = sorted(templates._names().values())
CASES = [
    *CHAT[:2],
    *USED,
    Case("reasoning", REASONED),
    Case("reasoning in the text", ALOUD),
    Case("a tool is used with reasoning", REASONED_USE, ALL, TOOLS),
]
STOPS = (
    *("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>"),
    *(
        "<|return|>",
        "<|call|>",
        "<|user|>",
        "<|observation|>",
        "<turn|>",
        "<|eot|>",
        "<end_of_utterance>",
        "<tool_call|>",
        "<eos>",
    ),
)


def any_tokenizer(bpe: Any, template: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that has whatever looks like a special token in `template`."""
    names = re.findall(r"<[|｜]?[A-Za-z_▁]+[|｜]?>", template)
    made = tokenizer_of(bpe, names, ("<eos>", *STOPS), "<bos>")
    made.chat_template = template
    return made


def row_of(tokenizer: PreTrainedTokenizerFast, case: Case) -> Any:
    example = {"messages": case.messages, **({"tools": case.tools} if case.tools else {})}
    try:
        (row,) = tokenize(tokenizer, Shape.CONVERSATION, [example], ids_of(tokenizer, STOPS), case.rules)
    except SetupError as error:
        return RowError(str(error))
    return row


def only_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_names", lambda: {})
    templates._chat.cache_clear()


@pytest.fixture(autouse=True)
def _fresh_templates() -> Any:
    yield
    templates._chat.cache_clear()


def test_marks_and_prefixes_give_the_same_mask(bpe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By TRL's marks alone, by the differences of renderings alone, and as llmkit combines them."""
    pairs = [(name, case) for name in TWINS for case in CASES]
    combined = [row_of(any_tokenizer(bpe, trl_file(name)), case) for name, case in pairs]
    by_marks = [row_of(any_tokenizer(bpe, trl_file(f"{name}_training")), case) for name, case in pairs]
    only_own(monkeypatch)
    by_prefix = [row_of(any_tokenizer(bpe, trl_file(name)), case) for name, case in pairs]
    compared = set()
    for (name, case), both, marked, prefixed in zip(pairs, combined, by_marks, by_prefix, strict=True):
        if isinstance(prefixed, RowError):
            continue
        assert both == prefixed, (name, case.title)
        if not isinstance(marked, RowError) and marked["input_ids"] == prefixed["input_ids"]:
            assert marked["labels"] == prefixed["labels"], (name, case.title)
            compared.add((name, case.title))
    assert {"llama3", "qwen2_5", "gemma", "cohere2", "lfm2_v2", "qwen3_8"} <= {name for name, _ in compared}
    assert len(compared) > 50


def test_nothing_but_the_assistant_is_trained_under_any_of_them(bpe: Any) -> None:
    """Each trained run ends with a stop token, there is one for each turn, and no other's text is in it."""
    seen = 0
    for name in TWINS:
        tokenizer = any_tokenizer(bpe, trl_file(name))
        for case in CASES:
            row = row_of(tokenizer, case)
            if isinstance(row, RowError):
                continue
            runs = [
                [token for token, _ in run]
                for trained, run in itertools.groupby(
                    zip(row["input_ids"], row["labels"], strict=True), key=lambda pair: pair[1] != IGNORED
                )
                if trained
            ]
            texts = [tokenizer.decode(run) for run in runs]
            said = [message for message in case.messages if message["role"] == "assistant"]
            assert len(runs) == len(said), (name, case.title, texts)
            for run, text in zip(runs, texts, strict=True):
                assert run[-1] in ids_of(tokenizer, STOPS), (name, case.title, text)
                assert not any(word in text for word in ("What is", "Sure?", "warm in", "celsius", "brief"))
                assert not text.lstrip().startswith("assistant"), (name, case.title, text)
            seen += 1
    assert seen > 70


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(str(templates._folder())).glob("*.jinja")))
def test_a_rendering_is_that_of_transformers(bpe: Any, name: str) -> None:
    """llmkit compiles templates through a function of transformers that is not public: this is its contract."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    tokenizer = any_tokenizer(bpe, trl_file(name))
    chat = chat_of(tokenizer)
    compared = 0
    for case in CASES:
        for prompt in (False, True):
            messages = case.messages[:-1] if prompt else case.messages
            try:
                expected = tokenizer.apply_chat_template(
                    messages, tools=case.tools, tokenize=False, add_generation_prompt=prompt
                )
            except (TemplateError, TypeError):
                continue
            said = turns.spoken(messages)
            assert chat.own.render(said, case.tools, prompt=prompt) == expected
            compared += 1
            if prompt or not chat.own.marked:
                continue
            (text,), (marks,) = render_jinja_template(
                [messages],
                tools=case.tools,
                chat_template=trl_file(name),
                return_assistant_tokens_mask=True,
                **tokenizer.special_tokens_map,
            )
            assert chat.own.render_marked(said, case.tools) == (text, marks)
    assert compared >= 2 or name.startswith("llava")


def test_the_twins_are_those_that_trl_takes(bpe: Any) -> None:
    from trl.chat_template_utils import get_training_chat_template

    assert len(TWINS) > 25
    for name in TWINS:
        tokenizer = any_tokenizer(bpe, trl_file(name))
        found = training_template(tokenizer)
        assert found.name == name
        assert found.text == get_training_chat_template(tokenizer)


def test_finding_them_does_not_import_trl() -> None:
    code = "import sys; from llmkit.data.templates import _names; assert _names(); assert 'trl' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_trl_there_are_no_twins(monkeypatch: pytest.MonkeyPatch, bpe: Any) -> None:
    monkeypatch.setattr(templates, "find_spec", lambda name: None)
    assert templates._names.__wrapped__() == {}


def test_the_note_says_how_turns_are_found(bpe: Any) -> None:
    assert "own marks" in training_template(any_tokenizer(bpe, trl_file("llama3_training"))).note
    plain = training_template(any_tokenizer(bpe, trl_file("llama3_1")))
    assert (plain.name, plain.text) == (None, trl_file("llama3_1"))
    assert "before and after" in plain.note
    assert "data.train_on: last" not in training_template(any_tokenizer(bpe, trl_file("llama3"))).note
    assert "data.train_on: last" in training_template(any_tokenizer(bpe, trl_file("qwen3"))).note
    assert "date of today" in training_template(any_tokenizer(bpe, trl_file("llama3_2"))).note


def test_a_template_by_name_is_chosen_as_transformers_does(bpe: Any) -> None:
    tokenizer = any_tokenizer(bpe, "plain")
    tokenizer.chat_template = {"default": "plain", "tool_use": "with tools"}
    assert chat_of(tokenizer).own.render([]) == "plain"
    assert chat_of(tokenizer, tools=True).own.render([]) == "with tools"


def test_a_template_that_is_no_jinja_says_where(bpe: Any) -> None:
    tokenizer = any_tokenizer(bpe, "one\n{% for m in messages %}")
    with pytest.raises(SetupError, match="no valid Jinja: line 2: Unexpected end of template"):
        chat_of(tokenizer)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no') }}", "no"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[9].content }}", "has no element 9"),
        ("{{ messages[0].content | int(base=99) / 0 }}", "base|zero"),
    ],
)
def test_what_a_template_raises_is_the_reason_of_the_row(bpe: Any, template: str, reason: str) -> None:
    with pytest.raises(RowError, match=f"the chat template refuses this conversation: .*{reason}"):
        chat_of(any_tokenizer(bpe, template)).own.render(TURNS)


def test_arguments_are_objects_and_for_templates_that_join_text_they_are_json(bpe: Any) -> None:
    joins = (
        "{% for m in messages %}{% for c in m.tool_calls %}{{ 'call ' + c.function.arguments }}{% endfor %}{% endfor %}"
    )
    assert chat_of(any_tokenizer(bpe, joins)).own.render(USE) == 'call {"city": "Köln"}'
    marked = joins.replace("{{ ", "{% generation %}{{ ").replace(" }}", " }}{% endgeneration %}")
    assert chat_of(any_tokenizer(bpe, marked)).own.render_marked(USE) == ('call {"city": "Köln"}', [(0, 21)])
    writes = joins.replace("'call ' + c.function.arguments", "c.function.arguments | tojson")
    assert chat_of(any_tokenizer(bpe, writes)).own.render(USE) == '{"city": "Köln"}'


def test_only_templates_without_a_generation_prompt_leave_one_out(bpe: Any) -> None:
    """Of those that TRL ships and those of the golden files, each asks as it answers; Mistral needs no header."""
    for text in [*map(trl_file, TWINS), *(family.template for family in FAMILIES.values())]:
        assert templates.unasked_header(chat_of(any_tokenizer(bpe, text))) == ""
    said = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    assert templates.unasked_header(chat_of(any_tokenizer(bpe, said))) == "<|im_start|>assistant\n"
    always = said + "<|im_start|>assistant\n"
    assert templates.unasked_header(chat_of(any_tokenizer(bpe, always))) == ""


def test_the_template_that_is_named_for_tool_calls_renders_them(bpe: Any) -> None:
    family = FAMILIES["smollm2"]
    tokenizer = tokenizer_of(bpe, family.special, family.stops, family.start)
    tokenizer.chat_template = family.template
    example = {"messages": USE, "tools": TOOLS}
    (row,) = tokenize(tokenizer, Shape.CONVERSATION, [example], ids_of(tokenizer, family.stops))
    assert isinstance(row, RowError)
    (file,) = re.findall(r"/\S+\.jinja", str(row))
    tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
    (row,) = tokenize(tokenizer, Shape.CONVERSATION, [example], ids_of(tokenizer, family.stops))
    assert not isinstance(row, RowError)
    assert '⟦<tool_call>↵\n{"name": "weather"' in drawn(tokenizer, row)
    assert drawn(tokenizer, row).startswith("<|im_start|>system↵\nYou are Qwen")  # as the message says
    assert templates.template_with_calls("[INST] other marks [/INST]") is None
