"""What may stand in a bad recipe: values, keys, paths, patterns, texts. `_mutations.py` puts it there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML

from llmkit.recipe.shipped import recipes_folder

SFT = recipes_folder() / "lora_qwen.yaml"
BASE = SFT.read_text(encoding="utf-8")


class Raw(str):
    """A piece of YAML that is written as it stands."""


def several(text: str) -> list[str]:
    """Return what stands in `text`, one a line or with bars between."""
    return [part for line in text.strip().split("\n") for part in line.split(" ¦ ")]


def _bomb(width: int, depth: int) -> Raw:
    """Return lists of aliases of lists of aliases: `width ** depth` values in a few hundred bytes."""
    lists = [f"&a0 [{', '.join('x' * width)}]"]
    lists += [f"&a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    return Raw(f"[{', '.join(lists)}]")


# fmt: off
FILES: tuple[str, ...] = (
    "missing", "folder", "pipe", "circular", "zero", "denied", "nowhere/x", "x" * 300, "~nobody-here/x",
)
"""Stems of files; each kind of path has a suffix of its own."""

PATHS: tuple[str, ...] = (
    *several("""
. ¦ .. ¦ / ¦ ~ ¦ ~/ ¦ ~nobody-here/x ¦ a//b ¦ ./ ¦ ../.. ¦ file:///etc/passwd ¦ missing.jsonl ¦ nowhere/rows.jsonl
rows.jsonl/below ¦ rows.jsonl:1 ¦ empty.jsonl ¦ rows.jsnol ¦ folder ¦ folder.jsonl ¦ pipe ¦ pipe.jsonl ¦ circular
circular.jsonl ¦ circular.jsonl/x ¦ zero.jsonl ¦ /dev/zero ¦ /dev/null ¦ /dev/stdin ¦ /proc/self/mem ¦ /proc/self/fd
denied.jsonl ¦ closed/rows.jsonl ¦ package: ¦ package:/ ¦ package:sys ¦ package:os ¦ package:six ¦ package:__main__
package:torch ¦ package:no_such ¦ package:os/path ¦ package:llmkit/../.. ¦ package:a.b/c ¦ made: ¦ made:base
made:_x ¦ made:nothing ¦ made:../x ¦ reasoning_gym: ¦ reasoning_gym:nothing ¦ reasoning_gym:composite ¦ http://[
user/repo/too/deep
"""),
    "", " ", "C:\\rows.jsonl", "x" * 300, "x" * 300 + ".jsonl", "x/" * 3000, "a\0b", "a\0b.jsonl", "\ud800.jsonl",
    "\x1b[2J.jsonl", "\u202efile.jsonl", "package:llmkit/" + "x" * 300, "made:" + "x" * 100_000,
)
"""What a recipe may have in the place of a path."""

VALUES: tuple[Any, ...] = (
    *several("""
true ¦ null ¦ yes ¦ 1e-4 ¦ 1e400 ¦ nan ¦ é ¦ ｌｏｒａ ¦ lоra ¦ SFT ¦ 💥
"""),
    *map(Raw, several("""
!!python/object/apply:os.system ['touch pwned'] ¦ !!python/name:os.system x ¦ !!python/object:x.y {a: 1}
!!binary gIGC ¦ !!binary é ¦ !!binary '*' ¦ !!timestamp 2001-12-14 ¦ !!timestamp x ¦ 2001-12-14
2001-12-14t21:59:43.10+99:99 ¦ 0001-01-01 00:00:00 +23:00 ¦ 2020-13-45 ¦ 9999-12-31T23:59:59-23:59 ¦ !!set {a, b}
!!omap [a: 1, a: 2] ¦ !!omap {a: 1} ¦ !!pairs [a: 1] ¦ !!seq {a: 1} ¦ !!map [a] ¦ !foo bar ¦ !foo {a: 1} ¦ !foo [a]
!<tag:x,2000:y> z ¦ ! a ¦ !!int x ¦ !!int '' ¦ !!int [] ¦ !!float '' ¦ !!null x ¦ !!bool x ¦ !!bool ''
!!str {a: 1} ¦ !!str 5 ¦ !!int 5 ¦ !!merge x ¦ !!value x ¦ = ¦ << ¦ &a [*a] ¦ &a {b: *a} ¦ &a {<<: *a}
[&a {<<: [*a]}] ¦ *nowhere ¦ &a &b x ¦ {<<: 5} ¦ {<<: [1]} ¦ {<<: {a: 1}} ¦ {<<: {a: 1}, <<: {b: 2}} ¦ {? [a] : b}
{? {a: b} : c} ¦ {? [[a], {b: c}] : d} ¦ {? &a [*a] : b} ¦ {[a, [b]]: c} ¦ {1: a, '1': b} ¦ {null: a}
{true: a, 1: b} ¦ {.nan: a} ¦ {2001-12-14: a} ¦ {!!binary gIGC : a} ¦ {a: 1, a: 2} ¦ 'unclosed ¦ "unclosed ¦ [1, 2
{a ¦ ] ¦ } ¦ {a: b: c} ¦ a: b ¦ - a ¦ %x ¦ @x ¦ `x` ¦ ? a ¦ ! ¦ & ¦ * ¦ 0o9 ¦ 0x ¦ 0b ¦ 0b2 ¦ 1_ ¦ _1 ¦ 1__0 ¦ + ¦ -
. ¦ .. ¦ 0. ¦ ~
""")),
    None, "", " ", "\n", [], {}, [[]], [None], [1], [{}], {"a": 1}, {"type": None}, {"type": "x"}, {"type": []},
    True, False, 0, 1, -1, 2, 7, 10**9, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 0.0, -0.0, 0.5, -0.5,
    1.5, 1e-320, 1e308, 5e-324, math.nan, math.inf, -math.inf, "x" * 100_000, "sft\u200b", "\u202etfs", "sft ", "\0",
    "\ud800", "\x1b[2J", "\x85", Raw("9" * 5000), Raw("-" + "9" * 5000), Raw("0x" + "f" * 5000),
    Raw("0b" + "1" * 5000), Raw("1" * 400 + ".0"), Raw("1e99999"), Raw("|\n x"), Raw('"\\x"'),
    Raw('"\\uD83D\\uDE00"'), Raw('"\\Uffffffff"'), Raw('"\\q"'), Raw("[" * 30 + "]" * 30), Raw("[" * 60 + "]" * 60),
    Raw("[" * 500 + "]" * 500), Raw("[" * 10_000 + "]" * 10_000), Raw("{a: " * 500 + "}" * 500), _bomb(10, 9),
    _bomb(2, 40), _bomb(300, 3), Raw("[" + ", ".join("x" * 3000) + "]"),
    Raw("{a: &a {x: y}, b: &b {<<: [*a, *a]}, c: {<<: [*b, *b]}}"),
)
"""What a recipe may have in the place of any value."""

JINJA: tuple[str, ...] = (
    *several("""
{{ ¦ {{ ( ¦ {% for ¦ {% if x %} ¦ {{ x | nothing }} ¦ {{ x is nothing }} ¦ {{ 9**9**9 }} ¦ {{ 'a' * 10**10 }}
{{ 'a' | center(10**10) }} ¦ {{ '%10000000000d' % 1 }} ¦ {{ [1] * 10**9 }} ¦ {{ range(10**9) | list }}
{% include 'x' %} ¦ {% extends 'x' %} ¦ {{ 1 // 0 }} ¦ {% set x = 1 %}{{ x }} ¦ {{ x.__class__.__mro__ }}
{%- raw %} ¦ {{ x } ¦ {% import 'x' as y %} ¦ {% block a %}{% endblock %}{% block a %}{% endblock %}
{% macro m(a, a) %}{% endmacro %} ¦ {{ 1e999 }} ¦ {% break %} ¦ {{ x if }} ¦ {{ loop.index }} ¦ {{ self.a() }}
{{ super() }} ¦ {#
"""),
    "{{ " + "(" * 5000, "{{ " + "-" * 20_000 + "1 }}", "{{ " + "[" * 150 + "]" * 150 + " }}",
    "{{ " + "9" * 5000 + " }}", "{{ '\\ud800' }}", "{{" + " a.b" * 5000 + "}}",
)
"""Lines of `columns`."""

PATTERNS: tuple[str, ...] = (
    *several("""
( ¦ [ ¦ * ¦ (?P< ¦ a{99999999999} ¦ (?<=a+) ¦ (?P<a>x)(?P<a>y) ¦ [[:nothing:]] ¦ (?R) ¦ (?1) ¦ (?i-x:a) ¦ (?V2)a
(?e)(a){e<=99999999999} ¦ a{1000}{1000}{1000} ¦ (?(5)a) ¦ (?P=x) ¦ [z-a] ¦ (?# ¦ a**
"""),
    "\\", "(" * 5000, "\\p{Nothing}", "\\L<names>", "\\N{NOTHING}", "x" * 50_000, "(?|(a)|(b))\\3", "[a-\\d]",
    "\\g<9>", "\\400", "\\x", "(a|" * 2000,
)
"""Regular expressions."""

SCHEMAS: tuple[Any, ...] = (
    *several("""
schema.json ¦ broken.json ¦ deep.json ¦ number.json ¦ latin.json
"""),
    {"type": "nothing"}, {"type": []}, {"$ref": "#/nowhere"}, {"$ref": "http://["}, {"$ref": 5}, {"$ref": "#"},
    {"$id": "http://["}, {"$schema": [1]}, {"$schema": {}}, {"$schema": "x"}, {"$schema": 5},
    {"$schema": "http://["}, {"$id": 5}, {"$anchor": "a b"}, {"pattern": "("}, {"pattern": "a{99999999999}"},
    {"pattern": "(" * 5000}, {"patternProperties": {"(": {}}}, {"pattern": 5}, {"enum": 5}, {"minimum": "x"},
    {"properties": []}, {"required": "a"}, {"allOf": []}, {"$defs": 1}, {"items": 3}, {}, {"not": None},
    {"$dynamicRef": "#x"}, {"$ref": "../../etc/passwd"}, {"$ref": "file:///etc/passwd"},
    {"$schema": "http://json-schema.org/draft-03/schema#"}, {"$id": "a", "$defs": {"b": {"$id": "a", "$ref": "c"}}},
    {"properties": {"a": {"$ref": "#/properties/a"}}}, {"dependencies": {"a": 1}},
    *(f"{stem}.json" for stem in FILES), *PATHS[:12],
)
"""JSON Schemas, and paths of files with one."""

FUNCTIONS: tuple[str, ...] = (
    *several("""
: ¦ x ¦ x.py ¦ x.py: ¦ :x ¦ x.py:1 ¦ hooks.py:nothing ¦ hooks.py:World ¦ broken.py:score ¦ deep.py:score
brackets.py:score ¦ latin.py:score ¦ nul.py:score ¦ hooks.txt:score ¦ /etc/passwd:x ¦ hooks.py:score:score ¦ .py:x
../hooks.py:score ¦ hooks.py:__class__ ¦ hooks.py:row ¦ hooks.py:score
"""),
    "", *(f"{stem}.py:score" for stem in FILES), "a\0b.py:score",
)
"""References to functions."""

URLS: tuple[str, ...] = (
    *several("""
x ¦ http:// ¦ http://[ ¦ http://a:b ¦ http://a:99999 ¦ http://a:0 ¦ ftp://a ¦ http://user:pass@a ¦ http://a b
http://é ¦ http://a?key=1 ¦ http://a#b ¦ HTTP://A/v1 ¦ //a ¦ http:a ¦ http://a:-1 ¦ http://[::1]/v1
"""),
    "", "http://" + "a" * 100_000, "http://a\nb",
)
"""Addresses of a judge."""

SETS: tuple[str, ...] = (
    *several("""
= ¦ a ¦ =1 ¦ .=1 ¦ ..=1 ¦ a.=1 ¦ .a=1 ¦ model ¦ model= ¦ model=5 ¦ model=[ ¦ model={ ¦ model.name=
model.name={a: b} ¦ model.name.x=1 ¦ data.train.0= ¦ data.train.1=x ¦ data.train.99=x ¦ data.train.-1=x
data.train.x=1 ¦ data.train.0.0=1 ¦ data.train=x ¦ data.train.0.path=missing.jsonl ¦ data.train.0.path=pipe.jsonl
data.train.0.path= ¦ data.train.0.path=[] ¦ data.eval=2 ¦ data.eval=.nan ¦ training.learning_rate=fast
training.sed=1 ¦ training=[1] ¦ training.seed=&a [*a] ¦ training.seed=*a ¦ training.seed=!!python/x y
training.seed=2020-01-01 ¦ training.seed=!!binary gIGC ¦ extends=x.yaml ¦ method=qlora ¦ method.type=[]
method.type={} ¦ method={type: 5} ¦ adapter.type=lroa ¦ adapter=lora ¦ adapter=[] ¦ adapter.r=-1 ¦ adapter.r=x
adapter.init_lora_weights=pissa ¦ quantization.type=nf5 ¦ rewards=[{type: exact_match}] ¦ rewards=x ¦ rewards.0=x
evaluation=x ¦ evaluation.0.type= ¦ export.0=merged ¦ export=merged ¦ export.5=1 ¦ hardware.device=gpu
hardware=cpu ¦ limits.hours=-1 ¦ limits.hours=.inf ¦ checkpoints.keep.last=0 ¦ stability.on_nan=go ¦ é=1
method.type=ｓｆｔ ¦ model name=1 ¦ a = b = c ¦ --set=1 ¦ model.__class__=1 ¦ __class__=1 ¦ model.model_config=1
model_config=1 ¦ training.kwargs=1 ¦ training.model_extra=1 ¦ training.max_length=1 ¦ training.max_length=-5
training.per_device_train_batch_size=0 ¦ training.gradient_accumulation_steps=-1 ¦ training.bf16=1
training.max_steps=null ¦ training.packing=true ¦ training.eval_strategy=steps ¦ training.report_to=nothing
training.report_to=[1] ¦ model.name=package:sys ¦ model.name=package:__main__ ¦ model.name=~nobody/x
model.name=circular ¦ model.name=./circle
"""),
    "", "training.seed=" + "9" * 5000, "training.seed=0x" + "f" * 5000, "a." * 2000 + "a=1", "a." * 60_000 + "a=1",
    "data.options." + "a." * 100 + "b=1", "x" * 100_000 + "=1", "training.seed=" + "x" * 100_000,
    "training.seed=" + "[" * 5000, "training.seed=" + "[" * 60 + "]" * 60, "\0=1", "a\0b=1", "\ud800=1",
    "model.name=\ud800", "model.name=\0", "model.name='\x1b[2J'", 'model.name="\\0"', "\u202emodel=1", " = ",
    "model.name=" + "x" * 300,
)
"""Overrides, as `--set` takes them."""

INSERTED: tuple[bytes, ...] = (
    b"\0", b"\t", b"\xff", b"\xc3\x28", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\xe2\x80\xa8", b"\xc2\xa0", b"\x1b",
    b"\n---\n", b"\n...\n", b": ", b"- ", b"? ", b"[", b"]", b"{", b"}", b",", b"#", b" #", b"&a ", b"*a ", b"!x ",
    b"!!int ", b"|\n", b">\n", b"'", b'"', b"%", b"@", b"`", b"<<: ", b"\\", b"\n", b"\n\n", b" " * 5000,
    b"x" * 5000, b"9" * 5000, b"\xf0\x9f\x92\xa5",
)
"""Bytes that may get into any file."""

ODD_KEYS: tuple[str, ...] = (
    *several("""
x ¦ type ¦ name ¦ a.b ¦ 0 ¦ __class__ ¦ __dict__ ¦ model_config ¦ model_fields ¦ kwargs ¦ copy ¦ _folder ¦ é ¦ types
Type ¦ TYPE ¦ extends ¦ folder ¦ origin ¦ placed ¦ per_device_train_batchsize
"""),
    *map(Raw, several("""
1 ¦ null ¦ true ¦ 1.5 ¦ .nan ¦ 2001-12-14 ¦ ? [a] ¦ !!binary gIGC ¦ << ¦ = ¦ *a ¦ &a b ¦ !x y ¦ [a] ¦ {a: b}
""")),
    "", " ", "\0", "\x1b", "\ud800", "k" * 10_000, "\u202ekey", "tYpe\n",
)
"""What a recipe may have in the place of any key."""

FILE_NAMES: tuple[str, ...] = (
    *several("""
missing.yaml ¦ folder ¦ pipe ¦ pipe.yaml ¦ circular.yaml ¦ zero.yaml ¦ closed/x.yaml ¦ rows.jsonl/x ¦ . ¦ .. ¦ /dev/zero
/dev/null ¦ ~nobody/x.yaml ¦ hooks.py
"""),
    "", "x" * 300, "x/" * 3000, "a\0b",
)
"""What may be named as a recipe file."""
# fmt: on

GROUPS: tuple[Mapping[str, Any], ...] = tuple(
    {"num_generations": group, **more}
    for group in (2**63 - 1, 2**62 + 1, 10**12 + 39, 999_983, 3, 2, 1, 0, -1, -(2**63))
    for more in (
        {},
        {"per_device_train_batch_size": 7, "gradient_accumulation_steps": 11},
        {"per_device_train_batch_size": 2**31, "gradient_accumulation_steps": 2**31},
        {"per_device_train_batch_size": 2**40, "generation_batch_size": 2**61 - 1},
        {"per_device_train_batch_size": 1, "steps_per_generation": 0},
        {"per_device_train_batch_size": 3, "steps_per_generation": -5, "eval_strategy": "steps"},
        {"per_device_eval_batch_size": 0, "num_generations_eval": -3, "eval_strategy": "epoch"},
    )
)
"""Sizes of groups and batches that no run has."""

TEXTS: Mapping[str, str] = {
    "two documents": BASE + "---\n" + BASE,
    "an end and more": BASE + "...\nmore: 1\n",
    "an end": BASE + "...\n",
    "a start": "---\n" + BASE,
    "YAML 1.1": "%YAML 1.1\n---\n" + BASE,
    "YAML 1.1 with yes": "%YAML 1.1\n---\n" + BASE.replace("overflow: truncate", "streaming: yes"),
    "YAML 3.0": "%YAML 3.0\n---\n" + BASE,
    "YAML 1.9": "%YAML 1.9\n---\n" + BASE,
    "YAML x": "%YAML x\n---\n" + BASE,
    "a tag directive": "%TAG ! tag:evil,2000:\n---\n" + BASE,
    "a tag directive twice": "%TAG ! a:\n%TAG ! b:\n---\n" + BASE,
    "an unknown directive": "%FOO bar\n---\n" + BASE,
    "all one anchor": "&a\n" + BASE,
    "a tag on the whole": "!!python/object:os.system\n" + BASE,
    "a set as a whole": "!!set {model, data, method}\n",
    "an omap as a whole": "!!omap [model: {name: a/b}]\n",
    "lists within lists": "a: " + "[" * 10_000 + "]" * 10_000 + "\n",
    "blocks within blocks": "\n".join(" " * i + "a:" for i in range(1500)) + "\n",
    "dashes within dashes": "- " * 5000 + "a\n",
    "laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "merges of merges": "a: &a {x: 1}\n"
    + "".join(f"{b}: &{b} {{<<: [{', '.join(['*' + a] * 9)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "its own merge": "model: &m\n  <<: *m\n  name: a/b\n",
    "an alias of the whole": "&a\nmodel: *a\n",
    "an alias as a key": "model: &m {name: a}\n*m : 1\n",
    "a key of a megabyte": '"' + "k" * 1_000_000 + '": 1\n' + BASE,
    "a value of a megabyte": BASE + "limits: " + "v" * 1_000_000 + "\n",
    "a comment of a megabyte": "# " + "c" * 1_000_000 + "\n" + BASE,
    "twenty thousand keys": BASE + "".join(f"k{i}: {i}\n" for i in range(20_000)),
    "three hundred keys": BASE + "".join(f"k{i}: {i}\n" for i in range(300)),
    "three thousand fields": BASE.replace("training:\n", "training:\n" + "".join(f"  f{i}: 0\n" for i in range(3000))),
    "two hundred sources": BASE.replace("train: [", "train: [" + "{pth: x}, " * 200),
    "a thousand comments": BASE + "# c\n" * 1000,
    "ten thousand empty lines": "\n" * 10_000 + BASE,
    "a question": "? model\n: {name: a/b}\n" + BASE,
    "questions": "? ? ? a\n",
    "a literal": "model: |\n" + BASE.replace("\n", "\n  "),
    "a folded literal": "model: >-99\n  x\n",
    "an indent of ten thousand": "model:\n" + " " * 10_000 + "name: a/b\n",
    "a tab for an indent": BASE.replace("\n  train", "\n\ttrain"),
    "a tab before a comment": BASE + "\t# comment\n",
    "a tab in the middle": BASE.replace("overflow: ", "overflow:\t"),
    "a JSON recipe": json.dumps(YAML(typ="safe", pure=True).load(BASE)),
    "a JSON list": "[1, 2, 3]",
    "a JSON escape of an emoji": json.dumps({**YAML(typ="safe", pure=True).load(BASE), "model": {"name": "a/😀"}}),
    "Python": "import os\nos.system('true')\n",
    "HTML": "<!DOCTYPE html>\n<html><body>404</body></html>\n",
    "TOML": "[model]\nname = 'a/b'\n",
    "a merge conflict": BASE.replace("method:", "<<<<<<< HEAD\nmethod:"),
    "a git LFS pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "only a BOM": "\ufeff",
    "two BOMs": "\ufeff\ufeff" + BASE,
    "a BOM inside": BASE.replace("data:", "\ufeffdata:"),
    "a BOM in front": "\ufeff" + BASE.replace("data:", "dta:"),
    "only white space": " \n\t\n ",
    "only a comment": "# nothing\n",
    "null": "null\n",
    "a tilde": "~\n",
    "dots": "...\n",
    "dashes": "---\n---\n---\n",
    "no-break spaces": BASE.replace("  train", "\u00a0\u00a0train"),
    "line separators": BASE.replace("\n", "\u2028"),
    "next lines": BASE.replace("\n", "\x85"),
    "carriage returns": BASE.replace("\n", "\r") + "dta: 1\r",
    "Windows": (BASE + "dta: 1\n").replace("\n", "\r\n"),
    "a form feed": BASE + "\x0c",
    "an escape": BASE + "\x1b[2J",
    "a private character": BASE + "\ue000: 1\n",
    "the last character": BASE + "\U0010ffff: 1\n",
    "curly quotes": BASE.replace("truncate", "\u201ctruncate\u201d"),
    "a full-width colon": BASE.replace("method:", "method\uff1a"),
}

BYTES: Mapping[str, bytes] = {
    "UTF-16": BASE.encode("utf-16"),
    "UTF-16 without a BOM": BASE.encode("utf-16-le"),
    "UTF-32": BASE.encode("utf-32"),
    "latin-1": (BASE + "# caf\xe9\n").encode("latin-1"),
    "a surrogate": BASE.encode() + b"# \xed\xa0\x80\n",
    "an overlong zero": BASE.encode() + b"\xc0\x80\n",
    "a NUL": BASE.encode() + b"\0",
    "NULs": b"\0" * 1000,
    "a gzip file": b"\x1f\x8b\x08\x00" + bytes(range(256)),
    "an ELF file": b"\x7fELF" + bytes(range(256)),
    "every byte": bytes(range(256)),
    "twenty megabytes": b"a: 1\n" * 4_000_000,
    "a megabyte of lists": b"- " * 500_000,
    "half a megabyte of brackets": b"[" * 500_000,
    "sixty kilobytes of brackets": b"[" * 60_000,
    "sixty kilobytes of items": b"[" + b"1," * 30_000 + b"]",
    "sixty kilobytes of keys": b"a: 1\n" * 12_000,
    "sixty kilobytes of questions": b"? " * 30_000,
    "sixty kilobytes of quotes": b'"' * 60_000,
    "sixty kilobytes of anchors": b"&a " * 20_000,
    "sixty kilobytes of exclamations": b"!" * 60_000,
    "sixty kilobytes of colons": b": " * 30_000,
    "sixty kilobytes of braces": b"{" * 60_000,
}
