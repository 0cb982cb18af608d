"""Chat templates: which text a conversation is, and where in it the assistant speaks.

What the model reads before it answers is always what the tokenizer's own Jinja template renders with a generation
prompt. TRL ships twins of well-known templates that mark with `{% generation %}` what the assistant writes. Such a twin
is taken for a tokenizer whose template is exactly the one it was made from, to tell where turns end, and to render a
turn that the tokenizer's own template does not show as the model writes it. It never changes what stands before one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.readers import LONGEST
from llmkit.data.shapes import RowError
from llmkit.errors import SetupError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_PIECES = 1_000_000
"""Pieces of text that one rendering may write: loops in loops could go on for days."""

Message = Mapping[str, Any]
Span = tuple[int, int]
"""First character of a piece of text, and the one behind it."""

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class TrainingTemplate:
    """The template that tells which tokens are trained."""

    text: str
    """The Jinja source."""
    name: str | None
    """TRL's name of the tokenizer's template, if TRL has a marked twin of it."""
    note: str
    """The sentence that says how the trained part of a conversation is found."""


class ChatTemplate:
    """One Jinja template, compiled by transformers, with the tokenizer's special tokens.

    It renders as `apply_chat_template` does, without the work that is the same for every row.
    """

    def __init__(self, text: str, special_tokens: Mapping[str, str]) -> None:
        from jinja2 import TemplateSyntaxError
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            _refuse_powers(text)
            self._compiled = _compile_jinja_template(text)
        except TemplateSyntaxError as error:
            raise SetupError(f"the chat template is no valid Jinja: line {error.lineno}: {error.message}") from error
        except RecursionError as error:
            raise SetupError("the chat template is nested too deeply") from error
        # Jinja would merge its globals anew for each rendering, which takes as long as a short conversation.
        self._given = {**self._compiled.globals, "documents": None, **special_tokens}
        self.text = text
        self.marked = _MARKS.search(text) is not None

    def render(self, messages: Sequence[Message], tools: Any = None, *, prompt: bool = False) -> str:
        """Return a conversation as text; with `prompt`, up to where the assistant would answer next.

        Raises RowError for a conversation that the template refuses.
        """
        return self._rendered(messages, tools, prompt, None)

    def render_marked(self, messages: Sequence[Message], tools: Any = None) -> tuple[str, list[Span]]:
        """Return a conversation as text, and what the template's `{% generation %}` marks enclose; raises as above."""
        marks: list[Span] = []
        return self._rendered(messages, tools, False, marks), marks

    def _rendered(self, messages: Sequence[Message], tools: Any, prompt: bool, marks: list[Span] | None) -> str:
        from jinja2 import TemplateError

        try:
            try:
                return self._joined(messages, tools, prompt, marks)
            except TypeError:
                # DeepSeek's templates join the arguments of a call as text; others write the object as JSON.
                written = _with_written_arguments(messages)
                if written is None:
                    raise
                return self._joined(written, tools, prompt, marks)
        # A template is a program of its own: these are what its expressions raise on values that it was not made for.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise RowError(f"the chat template refuses this conversation: {error}") from error
        except (RecursionError, MemoryError) as error:
            raise RowError(f"the chat template does not come to an end: {type(error).__name__}") from error

    def _joined(self, messages: Sequence[Message], tools: Any, prompt: bool, marks: list[Span] | None) -> str:
        pieces = self._pieces(messages, tools, prompt)
        if marks is None:
            return _bounded("".join(islice(pieces, MOST_PIECES)), pieces)
        written: list[str] = []
        marks.clear()
        with self._compiled.environment.activate_tracker(written, marks):
            for piece in islice(pieces, MOST_PIECES):
                written.append(piece)  # one by one: the tracker counts what has been written before a mark
            return _bounded("".join(written), pieces)

    def _pieces(self, messages: Sequence[Message], tools: Any, prompt: bool) -> Iterator[str]:
        given = {**self._given, "messages": messages, "tools": tools, "add_generation_prompt": prompt}
        context = self._compiled.new_context(given, shared=True)
        pieces: Iterator[str] = self._compiled.root_render_func(context)
        return pieces


def _refuse_powers(text: str) -> None:
    """Raise SetupError for a template with powers: Jinja computes `9 ** (9 ** 9)` when it compiles, and never returns.

    Raises TemplateSyntaxError for a template that can't be parsed.
    """
    from jinja2 import Environment, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    class Marks(Extension):
        """transformers' tag, as far as parsing goes."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    power = next(Environment(extensions=[Marks, loopcontrols]).parse(text).find_all(nodes.Pow), None)
    if power is not None:
        raise SetupError(f"the chat template computes a power (`**`, line {power.lineno}), which is refused")


def _bounded(text: str, rest: Iterator[str]) -> str:
    """Return `text`, the first pieces of a rendering; raises RowError if it is too long or there are more."""
    if len(text) > LONGEST or next(rest, None) is not None:
        raise RowError(
            f"the chat template writes more than {MOST_PIECES:,} pieces or {LONGEST // 1_000_000} MB of text"
        )
    return text


def _with_written_arguments(messages: Sequence[Message]) -> list[Message] | None:
    """Return the messages with the arguments of their tool calls as JSON; None if there are none to write."""
    if not any(message.get("tool_calls") for message in messages):
        return None
    return [
        {**message, "tool_calls": [_written_call(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _written_call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function", {})
    if not isinstance(function.get("arguments"), Mapping):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


@dataclass(frozen=True)
class Chat:
    """The templates of one tokenizer."""

    own: ChatTemplate
    """What the model reads."""
    twin: ChatTemplate | None
    """TRL's marked version of it; None if TRL has none, or the tokenizer's own has marks."""
    name: str | None
    """TRL's name of the template."""
    header: str | None
    """What stands before an answer when the model is asked for one; None if a probe can't tell."""
    closing: tuple[str, ...]
    """Special tokens that may end a turn: those that don't stand in the header."""


def chat_of(tokenizer: PreTrainedTokenizerBase, *, tools: bool = False) -> Chat:
    """Return the tokenizer's templates for conversations with or without tools.

    Raises SetupError for a tokenizer without a chat template.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name: one for conversations, one for those with tools
        template = tokenizer.get_chat_template(tools=[] if tools else None)
    if not template:
        raise SetupError(
            "the tokenizer has no chat template, so conversations can't be rendered",
            remedy="Give one as a Jinja file: model: {chat_template: template.jinja}; or train on plain strings.",
        )
    return _chat(template, tuple(tokenizer.special_tokens_map.items()), tuple(sorted(control_tokens(tokenizer))))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return how the special tokens are written: those with a role, and those that were added as special."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return {str(token) for token in (*tokenizer.all_special_tokens, *added) if token.strip()}


@lru_cache(maxsize=16)
def _chat(template: str, special_tokens: tuple[tuple[str, str], ...], control: tuple[str, ...]) -> Chat:
    own = ChatTemplate(template, dict(special_tokens))
    name = None if own.marked else _names().get(template)
    twin = ChatTemplate(twin_file(name).read_text(encoding="utf-8"), dict(special_tokens)) if name else None
    header = _header(own)
    return Chat(own, twin, name, header, tuple(token for token in control if token not in (header or "")))


def _header(own: ChatTemplate) -> str | None:
    question = [{"role": "user", "content": "a"}]
    try:
        asked, closed = own.render(question, prompt=True), own.render(question)
    except RowError:
        return None
    return asked[len(os.path.commonprefix([asked, closed])) :]


def unasked_header(chat: Chat) -> str:
    """Return what a template without a generation prompt writes before an answer; the model is asked without it.

    Empty if there is a generation prompt, or nothing but white space stands there (Mistral's).
    """
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "the answer"}
    if chat.header != "":
        return ""
    try:
        asked, told = chat.own.render([question], prompt=True), chat.own.render([question, answer])
    except RowError:
        return ""
    found = told[len(asked) :].partition(answer["content"])[0] if told.startswith(asked) else ""
    return found if found.strip() else ""


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """Return TRL's name of each template that it has a marked twin of, by the template's text."""
    folder = _folder()
    if folder is None:
        return {}
    names = (path.name.removesuffix("_training.jinja") for path in sorted(folder.glob("*_training.jinja")))
    originals = {name: folder / f"{name}.jinja" for name in names}
    return {path.read_text(encoding="utf-8"): name for name, path in originals.items() if path.is_file()}


def _folder() -> Path | None:
    # Found and not imported: importing TRL takes seconds.
    spec = find_spec("trl")
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) / "chat_templates" if places else None


def twin_file(name: str) -> Path:
    """Return TRL's file with the marked twin of the template `name`."""
    folder = _folder()
    assert folder is not None
    return folder / f"{name}_training.jinja"


def template_with_calls(rendered: str) -> Path | None:
    """Return TRL's file with a template that renders tool calls, for a tokenizer of ChatML; None for any other."""
    folder = _folder()
    chatml = "<|im_start|>assistant" in rendered and "<|im_end|>" in rendered
    return folder / "qwen2_5.jinja" if folder and chatml else None


_PROBE = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "<think>\nb\n</think>\n\nc"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "<think>\ne\n</think>\n\nf"},
)


def training_template(tokenizer: PreTrainedTokenizerBase) -> TrainingTemplate:
    """Return the template that tells which tokens of a conversation are trained, and how; raises as `chat_of`."""
    chat = chat_of(tokenizer)
    if chat.own.marked:
        note = "the chat template's own marks say what the assistant writes"
    elif chat.twin is None:
        note = "each turn is the difference between the chat template's renderings before and after it"
    else:
        note = f"the chat template is the one that TRL calls {chat.name!r}, whose marked twin says where turns end"
        if _differs(chat.own, chat.twin):
            note += (
                "; it drops the reasoning of earlier turns, as the model will see them, so of a conversation with "
                "several turns only the last is rendered as the model writes it (`data.train_on: last`)"
            )
    if "strftime_now" in chat.own.text:
        note += "; it may write the date of today into the prompt"
    return TrainingTemplate((chat.twin or chat.own).text, chat.name, note)


def _differs(own: ChatTemplate, twin: ChatTemplate) -> bool:
    try:
        return own.render(_PROBE) != twin.render(_PROBE)
    except RowError:
        return False
