from __future__ import annotations

import sys
import textwrap

import pytest

from llmkit.errors import DataError, RecipeError, RunError, SetupError
from llmkit.evaluation.metric import Metric, find_script, pick

SCRIPT = """
import datasets
import evaluate
{imports}

class MyAcc(evaluate.Metric):
    def _info(self):
        features = datasets.Features({{name: datasets.Value("{dtype}") for name in ("predictions", "references")}})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        right = sum(p == r for p, r in zip(predictions, references))
        return {{"my_acc": right / len(references), "right": right, "kind": "plain", "ok": True}}
"""


@pytest.fixture
def folder(tmp_path):
    """Return a writer of the metric's folder."""

    def write(dtype="string", imports=""):
        place = tmp_path / "my_acc"
        place.mkdir()
        (place / "my_acc.py").write_text(textwrap.dedent(SCRIPT.format(dtype=dtype, imports=imports)))
        return str(place)

    return write


def test_local_metric_works_offline(told, folder, monkeypatch, tmp_path):
    subject = told(["yes", "no", "no"], ["yes", "yes", "no"])
    path = folder()
    score = Metric(type="metric", path=path).score(subject)
    assert score.metrics == {"my_acc": pytest.approx(2 / 3), "right": 2.0}
    assert score.rows == 3
    assert Metric(type="metric", path=path, key="my_acc").score(subject).metrics == {"my_acc": pytest.approx(2 / 3)}
    monkeypatch.chdir(tmp_path)
    for relative in ("my_acc", "./my_acc/", "my_acc/my_acc.py"):
        assert Metric(type="metric", path=relative, key="right").score(subject).metrics == {"right": 2.0}


def test_missing_folder_is_told_before_anything_is_generated(subject, monkeypatch):
    monkeypatch.setattr("llmkit.evaluation._generation.generate", lambda *_, **__: pytest.fail("generated"))
    with pytest.raises(DataError, match=r"no metric at 'accuracy'(.|\n)*not fetched from the hub(.|\n)*accuracy.py"):
        Metric(type="metric", path="accuracy").score(subject([{"prompt": "a", "completion": "b"}]))


def test_folder_without_the_file_of_its_name(tmp_path):
    (tmp_path / "other.py").write_text("")
    with pytest.raises(DataError, match="does not exist"):
        find_script(str(tmp_path), tmp_path)


def test_metric_that_wants_numbers_refuses_texts(told, folder):
    with pytest.raises(DataError, match="the metric refuses the answers"):
        Metric(type="metric", path=folder(dtype="int32")).score(told(["yes"], ["no"]))


def test_metric_that_needs_a_missing_package(told, folder):
    with pytest.raises(SetupError, match="not_a_package_of_ours"):
        Metric(type="metric", path=folder(imports="import not_a_package_of_ours")).score(told(["yes"], ["no"]))


def test_missing_evaluate(subject, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(SetupError, match="pip install evaluate"):
        Metric(type="metric", path=folder()).score(subject([{"prompt": "a", "completion": "b"}]))


def test_results_without_the_wanted_number():
    with pytest.raises(RecipeError, match=r"no number 'acuracy' \(did you mean 'accuracy'\?\)"):
        pick({"accuracy": 0.5}, "acuracy", where="m.py")
    with pytest.raises(RunError, match="m.py: the metric gives no number"):
        pick({"kind": "x", "scores": [1.0]}, None, where="m.py")
