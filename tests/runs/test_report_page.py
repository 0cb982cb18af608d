"""The report: whole, by itself, safe whatever a run holds, and a picture that a browser draws."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmkit.errors import DataError, SetupError
from llmkit.runs.report_page import PAGE, REPORT_FILE, letter, readable, render, write_comparison, write_report
from llmkit.runs.report_scores import counts, groups, signed
from llmkit.runs.reported import Judged, _windows, read_run

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

EVIL = "</style></title><script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7 * 7 }} \u202e"
SHOWN = EVIL.replace("\u202e", "‹U+202E›")
VOID = {"meta", "br"}
CHROMIUM = shutil.which("chromium")

RESOLVED = """model.name: "tiny"  # recipe.yaml:1
method.type: "sft"  # recipe.yaml:2
adapter.type: "lora"  # recipe.yaml:3
adapter.r: 4  # recipe.yaml:3
training.learning_rate: 0.01  # recipe.yaml:4
training.bf16: false  # planner: no units for it
training.weight_decay: 0.0  # SFTConfig default
"""
HARDWARE = {"kind": "cpu", "name": "a CPU", "count": 1, "memory_bytes": 8 * 2**30, "cpu_cores": 2, "bf16": False}
DIGEST = "0123456789abcdef" * 4


class Outline(HTMLParser):
    """Collects tags, attributes and text, and checks that what is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.pieces: list[str] = []
        self.feed(page)
        assert self.open == []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)


def made(folder: Path, metrics: list[dict[str, Any]] | None = None, resolved: str = RESOLVED, **files: Any) -> Path:
    """Write a run folder by hand: its metrics, and other files by their stem (a list of JSON lines for `jsonl_...`)."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text("# what it shows\nmodel: {name: tiny}\n", encoding="utf-8")
    (folder / "resolved.yaml").write_text(resolved, encoding="utf-8")
    lines = {"metrics": metrics or [], **{k[6:]: v for k, v in files.items() if k.startswith("jsonl_")}}
    for stem, values in lines.items():
        text = "".join(json.dumps(value) + "\n" for value in values)
        (folder / f"{stem}.jsonl").write_text(text, encoding="utf-8")
    for stem, value in {"lock": {"packages": {"trl": "1.16.0"}, "git": DIGEST[:40]}, **files}.items():
        if not stem.startswith("jsonl_"):
            (folder / f"{stem}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def scores(text: str, base: float, tuned: float, **statistics: Any) -> dict[str, Any]:
    """Return an entry of evaluation.json; with the rest of `statistics`, one of its metric."""
    answer = {"where": "eval.jsonl:1", "prompt": f"what? {text}", "reference": f"it is four {text}"}
    entry: dict[str, Any] = {
        "evaluation": {"type": "exact_match"},
        "base": {"metrics": {"exact_match": base}, "rows": 100, "samples": [{**answer, "answer": f"it is two {text}"}]},
        "tuned": {
            "metrics": {"exact_match": tuned},
            "rows": 100,
            "samples": [{**answer, "answer": f"it is four {text}"}],
        },
    }
    if statistics:
        known = {"metric": "exact_match", "rows": 100, "base": base, "tuned": tuned, "change": tuned - base}
        entry["statistics"] = [{**known, "base_interval": None, "tuned_interval": None, **statistics}]
    return entry


def whole(folder: Path, text: str = "") -> Path:
    """Write a run folder with all that a report shows, `text` in every text of it."""
    metrics: list[dict[str, Any]] = [
        {
            "step": i,
            "loss": 2.0 / i,
            "learning_rate": 0.01,
            "reward": i / 40,
            "tokens_per_second": 90.0,
            "num_tokens": i,
        }
        for i in range(1, 41)
    ]
    metrics += [{"step": i, "eval_loss": 2.5 / i} for i in (20, 40)] + [{"step": 40, "train_runtime": 107.0}]
    better = {
        "change_interval": {"low": 0.3, "high": 0.5},
        "verdict": "better",
        "adjusted": 0.0004,
        "fixed": 42,
        "broken": 2,
    }
    finding = {
        "check": "echo",
        "severity": "warning",
        "what": f"it repeats {text}",
        "count": 9,
        "where": [f"a:1 {text}"],
    }
    account = {
        "read": 24,
        "kept": 20,
        "dropped": {f"too long {text}": 3},
        "broken": 1,
        "tokens": 500,
        "trained_tokens": 90,
    }
    regression = {"metric": "exact_match", "where": f"b:1 {text}", "prompt": f"why {text}", "reference": f"so {text}"}
    sampled = {"where": f"c:1 {text}", "prompt": f"say {text}", "rewards": {f"part {text}": 0.5, "other": 0.1}}
    run = made(
        folder,
        metrics,
        resolved=RESOLVED + f"data.train.0.path: {json.dumps(text)}  # recipe.yaml:9\n",
        evaluation=[scores(text, 0.4, 0.8, **better)],
        gates=[
            {
                "gate": {"text": f"exact_match >= 0.7 {text}"},
                "held": False,
                "said": f"exact_match >= 0.7 {text}: missed, so",
            }
        ],
        jsonl_regressions=[
            {**regression, "base": f"so {text}", "tuned": f"not so {text}"},
            {"metric": "acc", "row": 1234},
        ],
        jsonl_samples=[{**sampled, "step": i, "completion": f"{i} {text}", "reward": i / 9} for i in (1, 1, 5, 9)],
        ledger={"train": {f"rows.jsonl {text}": account}, "eval": {"rows.jsonl": {"read": 4, "kept": 4}}},
        lengths={"histogram": [{"low": 1, "high": 9, "count": 20}], "tokens_per_row": {"median": 5}, "max_length": 64},
        audit=[{**finding, "remedy": f"Mend it {text}."}],
        plan={
            "hardware": {**HARDWARE, "name": f"a CPU {text}"},
            "size": {"parameters": 134_515_008},
            "decisions": [{"key": f"model.dtype {text}", "value": f"float32 {text}", "reason": f"no bf16 {text}"}],
        },
        needs={"memory": 2 * 2**30, "usable": 6 * 2**30, "disk": 5 * 2**20},
        speed={
            "steps": 36,
            "seconds_per_step": 2.0,
            "unit": "tokens",
            "per_second": 141.0,
            "device": "cpu",
            "dtype": "x",
        },
        jsonl_sessions=[{"began": "2026-11-22T02:21:31+00:00", "seconds": 3725.0, "peak_bytes": 3 * 2**30}],
        export=[{"type": "merged", "path": "runs/x/export/merged", "checks": {f"mean_kl {text}": 1e-9}}],
    )
    (run / "recipe.yaml").write_text(f"# shows {text}\nmodel: {{name: tiny}} # {text}\n", encoding="utf-8")
    return run


# --- safe ------------------------------------------------------------------------------------------------------------


def test_nothing_of_a_run_becomes_markup(tmp_path: Path) -> None:
    plain = Outline(render([whole(tmp_path / "plain")]))
    page = render([whole(tmp_path / "evil", EVIL)])
    outline = Outline(page)
    # Texts make no element: the pages have the same ones, in the same order.
    marks = ("ins", "del", "span", "i")
    assert [t for t, _ in outline.tags if t not in marks] == [t for t, _ in plain.tags if t not in marks]
    assert not {tag for tag, _ in outline.tags} & {"script", "img", "link", "iframe", "object", "base", "form"}
    assert not {name for _, attributes in outline.tags for name in attributes if name.startswith("on")}
    assert "\u202e" not in page
    # Each text is there, as text.
    assert outline.text.count("{{ 7 * 7 }}") > 25
    for words in ("it repeats", "a:1", "rows.jsonl", "too long", "why", "say", "model.dtype", "mean_kl", "shows"):
        assert f"{words} {SHOWN}" in outline.text, words


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = render([whole(tmp_path / "run", "http://example.org/x.png")])
    assert page.startswith("<!doctype html>")
    outline = Outline(page)
    for tag, attributes in outline.tags:
        assert tag not in ("script", "link", "iframe", "img")
        assert not any(
            str(attributes.get(name, "#")).lstrip("#").startswith(("http", "//", "data:")) for name in ("src", "href")
        )
        assert "http" not in str(attributes.get("style", ""))
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert not re.search(r"url\(|@import|https?:", style)
    assert [
        a["content"] for t, a in outline.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ] == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"]
    assert ("meta", {"charset": "utf-8"}) in outline.tags
    assert "@media print" in style
    assert "prefers-color-scheme: dark" in style


def test_every_link_of_the_page_leads_somewhere_on_it(tmp_path: Path) -> None:
    outline = Outline(render([whole(tmp_path / "run")]))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [str(attributes["href"]).removeprefix("#") for tag, attributes in outline.tags if tag == "a"]
    assert len(targets) > 6
    assert set(targets) <= set(ids)
    named = [
        str(attributes["aria-labelledby"]).split() for _, attributes in outline.tags if "aria-labelledby" in attributes
    ]
    assert {name for names in named for name in names} <= set(ids)


def test_pictures_have_words_and_tables_have_headings(tmp_path: Path) -> None:
    page = render([whole(tmp_path / "run")])
    for picture in re.findall(r'<svg[^>]*role="img".*?</svg>', page, re.DOTALL):
        assert re.search(r"<title[^>]*>[^<]{5,}</title>", picture)
    assert all("scope" in attributes for tag, attributes in Outline(page).tags if tag == "th")
    assert "<title>exact_match: change +0.4, 95% interval +0.3 to +0.5</title>" in page


def test_half_a_character_is_named(tmp_path: Path) -> None:
    run = made(tmp_path / "run", evaluation=[scores("\ud800", 0, 1)])
    text = Outline(render([run])).text
    assert "it is four ‹U+D800›" in text
    write_report(run)


def test_line_breaks_stay_and_other_controls_are_seen() -> None:
    assert readable("a\n\tb\r\x1b[31m\u2066\u200d") == "a\n\tb␍␛[31m‹U+2066›\u200d"
    assert readable(3) == 3


def test_secrets_stay_out_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_" + "Ab3" * 12
    monkeypatch.setenv("MY_TOKEN", "quite a secret 123")
    run = made(tmp_path / "run", evaluation=[scores(f"{secret} quite a secret 123", 0, 1)])
    path = write_report(run)
    assert path == run / REPORT_FILE
    text = path.read_text(encoding="utf-8")
    assert "*** ***" in text
    assert secret not in text
    assert "quite a secret" not in text
    assert not list(run.glob(".*"))


# --- whole -----------------------------------------------------------------------------------------------------------


def test_everything_that_a_run_has_is_on_its_page(tmp_path: Path) -> None:
    words = Outline(render([whole(tmp_path / "run")])).words
    for said in (
        "finished, 40 steps",
        "sft + lora, r = 4",
        "tiny, 135 M parameters",
        "rows.jsonl : 20 rows, 500 tokens; 4 rows held out",
        "2026-11-22 02:21",
        "took 1 h 2 min",
        "▲ 1 better",
        "100 0.4 0.8 +0.4 +0.3 to +0.5",
        "▲ better 42 fixed, 2 broken, p < 0.001",
        "✗ missed exact_match >= 0.7",
        "2 → 0.05",
        "held-out rows 0.125 → 0.0625",
        "✓ the reference",
        "2 rows that the base model got right",
        "acc: rows 1,234",
        "3 dropped: too long ; 1 broken",
        "20 of 24",
        "median 5; max_length 64",
        "warning echo it repeats",
        "memory, planned 2.0 GiB",
        "memory, measured 3.0 GiB",
        "of 8.0 GiB",
        "141 tokens/s",
        "export/merged",
        "trl 1.16.0",
        "git 0123456789ab…",
        "llmkit reproduce",
        "model: {name: tiny}",
        "no bf16",
    ):
        assert said in words, said
    assert DIGEST[:40] not in words


def test_words_that_differ_are_marked(tmp_path: Path) -> None:
    page = render([made(tmp_path / "run", evaluation=[scores("", 0, 1)])])
    assert "it is <del>two</del> " in page
    assert "it is <ins>four</ins> " in page


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    page = render([made(tmp_path / "run")])
    words = Outline(page).words
    assert "unfinished: nothing is trained yet" in words
    assert "--resume" in words
    for heading in ("Scores", "Curves", "Answers", "Regressions", "Data"):
        assert f">{heading}" not in page


def test_a_run_without_statistics_is_not_called_better(tmp_path: Path) -> None:
    run = made(tmp_path / "run", evaluation=[scores("", 0.1, 0.9)])
    words = Outline(render([run])).words
    assert "· not tested" in words
    assert "better" not in words.replace("no difference seen", "")
    assert counts(read_run(run)) == [("not", "·", "not tested", 1)]


def test_rows_are_called_good_only_if_they_were_audited(tmp_path: Path) -> None:
    ledger = {"train": {"rows.jsonl": {"read": 4, "kept": 4}}}
    said = "The audit found nothing wrong"
    assert said in render([made(tmp_path / "audited", ledger=ledger, audit=[])])
    assert said not in render([made(tmp_path / "not", ledger=ledger)])
    assert said not in render([tmp_path / "audited", tmp_path / "not"])
    assert said not in render([whole(tmp_path / "found")])


def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = whole(tmp_path / "run")
    (run / "ledger.json").write_text('{"train": [', encoding="utf-8")
    (run / "evaluation.json").write_text('[{"evaluation": 3}]', encoding="utf-8")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 41, "lo')
    with (run / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": "one"}\n{"st')
    found = read_run(run)
    assert set(found.unread) == {"ledger.json", "evaluation.json"}
    words = Outline(render([run])).words
    assert "not shown ledger.json" in words
    assert "not shown evaluation.json" in words
    assert "2 → 0.05" in words
    assert len(found.sampled) == 4


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is not a run folder"):
        render([tmp_path])
    with pytest.raises(SetupError, match="is not a run folder"):
        write_report(tmp_path / "none")
    assert not (tmp_path / REPORT_FILE).exists()


def test_a_hundred_thousand_steps_are_a_small_page(tmp_path: Path) -> None:
    metrics = [{"step": i, "loss": 2 + math.sin(i), "grad_norm": 1.0 + i % 7} for i in range(1, 100_001)]
    page = render([made(tmp_path / "run", metrics)])
    assert len(page) < 300_000
    assert "100,000 steps" in page


def test_long_answers_are_cut_and_many_are_folded(tmp_path: Path) -> None:
    answer = {"where": "a", "reference": None, "answer": "x" * 100_000}
    samples = [{**answer, "prompt": f"{i} " + "y" * 5000} for i in range(300)]
    model = {"metrics": {}, "rows": 300, "samples": samples}
    page = render(
        [made(tmp_path / "run", evaluation=[{"evaluation": {"type": "generate"}, "base": model, "tuned": model}])]
    )
    assert len(page) < 200_000
    assert "98,500 more characters" in page
    assert "<summary>16 more</summary>" in page
    assert "the same answer" in page


def test_of_a_long_file_of_samples_both_ends_and_the_middle_are_read(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    lines = [json.dumps({"step": i, "pad": "x" * (i % 50)}) for i in range(2000)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = [json.loads(line)["step"] for line in _windows(path, 1000)]
    assert found[0] == 0
    assert found[-1] == 1999
    assert 10 < len(found) < 100
    assert any(900 < step < 1100 for step in found)
    assert [json.loads(line)["step"] for line in _windows(path)] == list(range(2000))
    # A window that begins with a line has it.
    path.write_text("".join(f"{i:019}\n" for i in range(1000)), encoding="utf-8")
    assert [int(line) for line in _windows(path, 200)] == [*range(10), *range(495, 505), *range(990, 1000)]


# --- several runs ----------------------------------------------------------------------------------------------------


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    one = whole(tmp_path / "one")
    other = made(
        tmp_path / "two",
        [{"step": i, "loss": 3.0 / i} for i in range(1, 61)],
        resolved=RESOLVED.replace("0.01", "0.02"),
        evaluation=[scores("", 0.4, 0.3, change_interval={"low": -0.2, "high": 0.1}, verdict="no difference seen")],
    )
    page = render([one, other])
    outline = Outline(page)
    words = outline.words
    assert "A one ✓ finished, 40 steps" in words
    assert "B two ✓ finished, 60 steps" in words
    assert "settings training.learning_rate 0.01 0.02 recipe" in words
    assert "adapter.type" not in words.split("What differs")[1].split("Curves")[0]
    [loss] = [svg for svg in re.findall(r"<svg viewBox.*?</svg>\n</svg>", page, re.DOTALL) if ">Loss by step<" in svg]
    assert [len(re.findall(rf'<g class="r{run}">', loss)) for run in (0, 1)] == [1, 1]
    assert '<g class="r0 held">' in loss
    assert "A 2 → 0.05" in words
    assert "B 3 → 0.05" in words
    assert "= no difference seen" in words
    assert f"llmkit diff {one} {other}" in words
    assert "exact_match · the same answer" in words


def test_a_metric_has_one_scale_for_all_runs(tmp_path: Path) -> None:
    intervals = {"change_interval": {"low": 0.1, "high": 0.3}, "verdict": "better"}
    runs = [
        made(tmp_path / name, evaluation=[scores("", 0.5, tuned, **intervals)])
        for name, tuned in (("a", 0.7), ("b", 0.6))
    ]
    [group] = groups([read_run(run) for run in runs])
    one, two = group.scored
    assert one.picture is not None
    assert two.picture is not None
    assert (one.picture.zero, one.picture.low) == (two.picture.zero, two.picture.low)
    assert one.picture.width == pytest.approx(2 * two.picture.width, abs=0.2)


def test_an_evaluation_that_a_run_has_twice_is_two_groups(tmp_path: Path) -> None:
    found = groups([read_run(made(tmp_path / "run", evaluation=[scores("", 0, 1), scores("", 0, 0.5)]))])
    assert [(group.evaluation, group.scored[0].tuned) for group in found] == [
        ("exact_match", "1"),
        ("exact_match (2)", "0.5"),
    ]


def test_scores_that_are_no_numbers_are_not_drawn(tmp_path: Path) -> None:
    run = read_run(made(tmp_path / "run", evaluation=[scores("", 1, math.nan)]))
    [group] = groups([run])
    assert group.scored[0].picture is None
    assert group.scored[0].tuned == "nan"
    only = replace(run, evaluations=())
    assert groups([only]) == []
    assert Judged("x", 0).verdict == "not tested"
    assert [signed(value) for value in (0.5, -0.5, 0.0, None)] == ["+0.5", "-0.5", "0", "–"]


def test_a_comparison_replaces_no_other_file(tmp_path: Path) -> None:
    runs = [made(tmp_path / name) for name in ("one", "two")]
    target = tmp_path / "both.html"
    write_comparison(runs, target)
    write_comparison(runs, target)
    assert target.read_text(encoding="utf-8").startswith(PAGE)
    target.write_text("<!doctype html>mine", encoding="utf-8")
    with pytest.raises(DataError, match="exists already, and is not overwritten"):
        write_comparison(runs, target)


def test_runs_have_letters() -> None:
    assert [letter(i) for i in (0, 25, 26)] == ["A", "Z", "27"]


# --- real runs, real browser -----------------------------------------------------------------------------------------


def test_a_real_run_has_a_report(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    from llmkit.runs.runner import run

    evaluations = "evaluation=[{type: perplexity}, {type: exact_match, max_new_tokens: 4}]"
    result = run(recipe(evaluations, "gates=[loss <= 100]", "export=[{type: adapter}]"), out=tmp_path / "run")
    page = render([result.folder])
    words = Outline(page).words
    assert "finished, 3 steps" in words
    assert read_run(result.folder).unread == ()
    for score in result.tuned:
        for value in score.metrics.values():
            assert f" {value:.4g} " in words or f" {value:,.0f} " in words
    assert "18 of 24" in words
    assert "✓ held loss <= 100 it is" in words
    assert "Loss by step" in page
    assert page.count("<article>") >= 4
    assert "adapter" in words.split("Exports")[1]


def test_a_real_run_with_rewards_has_a_report(
    grpo_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.recipe.loading import load_recipe
    from llmkit.rewards.exact_match import ExactMatch
    from llmkit.runs.runner import run

    rows = [{"prompt": f"{i} is", "answer": str(i)} for i in range(8)]
    monkeypatch.setattr(ExactMatch, "score", lambda self, completion, row: sum(c.isalpha() for c in completion) / 10)
    result = run(load_recipe(grpo_file("grpo", rows, max_completion_length=6)), out=tmp_path / "run")
    page = render([result.folder])
    words = Outline(page).words
    assert read_run(result.folder).unread == ()
    assert "Reward by step" in page
    assert "Answers while training" in words
    assert "step 2" in words


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_the_page_in_light_and_dark(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    page = tmp_path / "report.html"
    page.write_text(render([whole(tmp_path / "run")]), encoding="utf-8")
    pictures = {}
    for name, flags in (("light", ()), ("dark", ("--force-dark-mode",))):
        target = tmp_path / f"{name}.png"
        command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *flags]
        command += [
            f"--user-data-dir={tmp_path / name}",
            "--window-size=1100,1600",
            f"--screenshot={target}",
            page.as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        pictures[name] = image.open(target).convert("RGB")
    light, dark = pictures["light"], pictures["dark"]
    assert light.size == (1100, 1600)
    assert light.getpixel((3, 3)) == (253, 253, 252)
    assert dark.getpixel((3, 3)) == (21, 23, 26)
    for picture in (light, dark):
        # Text, lines, bars and marks: many colours, and none of them on most of the page.
        assert len(picture.getcolors(2**24)) > 200
    paper = sum(count for count, colour in light.getcolors(2**24) if colour == (253, 253, 252))
    assert 0.4 < paper / (1100 * 1600) < 0.97
