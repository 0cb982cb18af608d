"""Chat templates and `columns` are programs that come with models and recipes: they reach nothing, and end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.shapes import RowError
from llmkit.data.sources import check_source, read_rows
from llmkit.data.templates import MOST_PIECES, ChatTemplate, _refuse_powers
from llmkit.errors import RecipeError, SetupError
from llmkit.recipe.recipe import Source

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]

ESCAPES = [
    "''.__class__.__mro__[1].__subclasses__()",
    "''.__class__.__base__.__subclasses__()[0]",
    "cycler.__init__.__globals__.os.system(COMMAND)",
    "joiner.__init__.__globals__.os.popen(COMMAND).read()",
    "namespace.__init__.__globals__['os'].system(COMMAND)",
    "range.__self__.eval(COMMAND)",
    "dict.__base__.__subclasses__()",
    "self.__init__.__globals__.__builtins__.exec(COMMAND)",
    "self._TemplateReference__context.environment.loader.x()",
    "(''|attr('__class__')).__mro__[1]",
    "''['__class__']['__mro__'][1]",
    "'{0.__class__.__mro__[1]}'.format('')",
    "'{a.__class__.__init__.__globals__}'.format_map({'a': joiner})",
    "[''.__class__]|map(attribute='__mro__')|first|first",
    "[cycler]|map(attribute='__init__.__globals__.os')|first|string",
    "'%s'.format.__self__.__class__.__mro__[0]",
    "(loop if loop else cycler).__init__.__globals__['os'].system(COMMAND)",
]
"""Ways out of Jinja that are passed around; COMMAND would leave a file."""

CHAT_ESCAPES = [
    "raise_exception.__globals__['os'].system(COMMAND)",
    "strftime_now.__globals__.__builtins__.open('/etc/passwd').read()",
    "messages.__class__.__base__.__subclasses__()",
    "messages[0].__class__.__init__.__globals__",
    "messages.append({'role': 'user', 'content': 'x'})",
    "messages[0].update(role='x')",
    "messages[0].pop('role')",
]


@pytest.mark.parametrize("escape", ESCAPES + CHAT_ESCAPES)
def test_a_chat_template_gets_nowhere(escape: str, mine: Any) -> None:
    text = "{{ " + escape.replace("COMMAND", repr(f"touch {mine.marker}")) + " }}"
    messages = [dict(message) for message in MESSAGES]
    try:
        written = ChatTemplate(text, {}).render(messages)
    except (RowError, SetupError) as error:
        assert "chat template" in str(error)  # noqa: PT017 - jinja may as well write nothing
    else:
        assert written == ""
    assert messages == MESSAGES
    assert not mine.went_off


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_line_of_columns_gets_nowhere(escape: str, mine: Any, tmp_path: Path) -> None:
    text = "{{ " + escape.replace("COMMAND", repr(f"touch {mine.marker}")) + " }}"
    (tmp_path / "rows.jsonl").write_text('{"a": "b", "loop": null}\n', encoding="utf-8")
    source = Source(path="rows.jsonl", format="text", columns={"text": text})
    try:
        [(_, found)] = _mapped(source, tmp_path)
    except RecipeError as error:
        assert "`columns.text`" in str(error)  # noqa: PT017
    else:
        assert isinstance(found, RowError), found
    assert not mine.went_off


def _mapped(source: Source, folder: Path) -> list[Any]:
    from llmkit.data.mapping import mapped

    check_source(source, folder)
    return list(mapped(read_rows(source, folder), source, folder))


@pytest.mark.parametrize("statement", ["include '/etc/passwd'", "import 'os' as os", "extends '/etc/passwd'"])
def test_a_template_reads_no_files(statement: str, tmp_path: Path) -> None:
    with pytest.raises(RowError, match="chat template"):
        ChatTemplate(f"{{% {statement} %}}", {}).render(MESSAGES)
    (tmp_path / "rows.jsonl").write_text('{"a": "b"}\n', encoding="utf-8")
    line = f"{{% {statement} %}}"
    with pytest.raises(RecipeError, match="`columns.text`: a line can't reach other templates"):
        _mapped(Source(path="rows.jsonl", format="text", columns={"text": line}), tmp_path)


ENDLESS = {
    "range": "{% for i in range(1000000000) %}x{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "long string": "{{ 'a' * 100000000000000 }}",
    "powers": "{{ 9 ** (9 ** 9) }}",
    "brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
}
LOOPS = "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}"


@pytest.mark.parametrize("text", [*ENDLESS.values(), LOOPS], ids=[*ENDLESS, "loops"])
def test_a_chat_template_comes_to_an_end(text: str) -> None:
    began = time.process_time()
    with pytest.raises((RowError, SetupError), match="the chat template"):
        ChatTemplate(text, {}).render(MESSAGES)
    assert time.process_time() - began < 5


def test_a_marked_template_comes_to_an_end() -> None:
    template = ChatTemplate(f"{{% generation %}}x{{% endgeneration %}}{LOOPS}", {})
    with pytest.raises(RowError, match=f"more than {MOST_PIECES:,} pieces"):
        template.render_marked(MESSAGES)


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
def test_a_line_of_columns_comes_to_an_end(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": "b"}\n', encoding="utf-8")
    began = time.process_time()
    try:
        [(_, found)] = _mapped(Source(path="rows.jsonl", format="text", columns={"text": text}), tmp_path)
    except RecipeError as error:
        assert "`columns.text`" in str(error)  # noqa: PT017 - brackets
    else:
        assert isinstance(found, RowError), found
    assert time.process_time() - began < 5


def test_small_products_and_powers_are_computed(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 3}\n', encoding="utf-8")
    line = "{{ '-' * 5 }}{{ 2 ** 10 }}{{ a * 1.5 }}{{ [1] * 2 }}"
    [(_, found)] = _mapped(Source(path="rows.jsonl", format="text", columns={"text": line}), tmp_path)
    assert found["text"] == "-----10244.5[1, 1]"


def test_no_template_of_trl_is_taken_for_an_attack() -> None:
    from importlib.util import find_spec

    spec = find_spec("trl")
    files = sorted(Path(str(spec and spec.origin)).parent.glob("chat_templates/*.jinja"))
    assert len(files) > 10
    for file in files:
        _refuse_powers(file.read_text(encoding="utf-8"))
