"""JSON that strict parsers read: NaN and infinities."""

import ast
import json
import math
import pathlib

import numpy as np
import pytest

from jaxnlp import strict_json
from jaxnlp.training.run_folder.metric_log import MetricLog, read_log

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOT_OURS = {"jaxnlp/strict_json.py", "jaxnlp/failure_detection.py", "experiments/bench/harness.py"}
"""The writer itself, and messages between two of our own processes."""
NOT_WRITTEN = {
    "jaxnlp/data/records.py": 2,
    "jaxnlp/data/tokenizer.py": 1,
    "jaxnlp/data/huggingface_tokenizer.py": 2,
    "jaxnlp/interop/chat_template.py": 1,
}
"""Calls whose text is hashed, checked or passed to a library, and not written."""


def strict(text: str):
    """A parser without the extensions of Python's."""

    def refuse(name):
        raise ValueError(f"not JSON: {name}")

    return json.loads(text, parse_constant=refuse)


NAN, INF = math.nan, math.inf
CASES = [
    ({"loss": NAN, "step": 3}, {"loss": None, "step": 3, "not_finite": {"loss": "NaN"}}),
    ({"a": {"x": INF}, "b": -INF}, {"a": {"x": None, "not_finite": {"x": "Infinity"}}, "b": None}),
    ({"a": [1.0, [NAN, 2]], "a[0]": INF}, {"a": [1.0, [None, 2]], "a[0]": None}),
    ({"rows": [{"f": INF}, {"f": 1}]}, {"rows": [{"f": None, "not_finite": {"f": "Infinity"}}, {"f": 1}]}),
    ({"plain": [1, None, "NaN", True]}, {"plain": [1, None, "NaN", True]}),
    ({"not_finite": {}}, {"not_finite": {}}),
    ({"a[0]": [NAN], "a": [INF]}, {"a[0]": [None], "a": [None]}),
    ({"a[0]": NAN, "a": [INF, 1]}, {"a[0]": None, "a": [None, 1]}),
    ({"a[0]": None, "a": [INF]}, {"a[0]": None, "a": [None]}),
    ({'"a[0]"': NAN, "a[0]": INF, "a": [None]}, {'"a[0]"': None, "a[0]": None}),
    ({'"': NAN, "\\[1]": [[INF]], "\n[1]": -INF}, {'"': None}),
]


@pytest.mark.parametrize("value, written", CASES)
def test_every_number_is_strict_json_and_is_restored(value, written):
    text = strict_json.dumps(value)
    parsed = strict(text)
    assert {**parsed, **written} == parsed
    assert repr(strict_json.loads(text)) == repr(value)  # repr, since NaN differs from itself


def test_files_written_without_quotes_are_read():
    places = '{"a[0]": "NaN", "a[1]": "NaN", "b[1][0]": "NaN"}'
    text = '{"a": [1.0, null], "a[0]": null, "b[1]": [null], "not_finite": ' + places + "}"
    assert repr(strict_json.loads(text)) == repr({"a": [1.0, NAN], "a[0]": NAN, "b[1]": [NAN]})


def test_keys_are_those_of_pythons_module_and_never_lost():
    value = {NAN: 1, INF: NAN, True: NAN, None: [INF], 1.5: NAN, np.int64(2): 3}
    wanted = {"NaN": 1, "Infinity": NAN, "true": NAN, "null": [INF], "1.5": NAN, "2": 3}
    text = strict_json.dumps(value)
    assert strict(text)["not_finite"].keys() == {"Infinity", "true", "null[0]", "1.5"}
    assert repr(strict_json.loads(text)) == repr(wanted)
    for twice in ({NAN: 1, "NaN": 2}, {1: 1, "1": 2}):
        with pytest.raises(ValueError, match=r"two keys of a dictionary are '\w+' in JSON"):
            strict_json.dumps(twice)
    with pytest.raises(TypeError, match="keys must be str"):
        strict_json.dumps({("a",): 1})


def test_numbers_of_numpy():
    value = {"a": np.float32("nan"), "b": [np.float16("inf"), np.float32(0.5)], "c": np.int64(3), "d": np.bool_(True)}
    text = strict_json.dumps(value)
    assert strict(text)["not_finite"] == {"a": "NaN", "b[0]": "Infinity"}
    assert repr(strict_json.loads(text)) == repr({"a": NAN, "b": [INF, 0.5], "c": 3, "d": True})
    assert strict(strict_json.dumps([np.float32("-inf"), np.float64("nan")])) == ["-Infinity", "NaN"]


def test_outside_an_object_it_is_a_string_that_float_reads():
    parsed = strict(strict_json.dumps([1.5, NAN, (-INF,)]))
    assert math.isnan(float(parsed[1])) and float(parsed[2][0]) == -INF
    own = {"not_finite": 3, "x": NAN}  # the value has a field of that name
    assert strict(strict_json.dumps(own)) == {"not_finite": 3, "x": "NaN"}


def test_a_metric_log_is_strict_json_and_all_ways_of_writing_are_read(tmp_path):
    log = MetricLog(tmp_path)
    log.write(1, "train", {"loss": 2.5, "grad_norm": INF})
    log.write(2, "train", {"loss": NAN, "grad_norm": 1.0})
    log.close()
    path = tmp_path / "metrics.jsonl"
    assert [strict(line)["not_finite"] for line in path.read_text().splitlines()] == [
        {"grad_norm": "Infinity"},
        {"loss": "NaN"},
    ]
    other = ['{"step": 3, "kind": "train", "loss": NaN}', '{"step": 4, "kind": "train", "loss": "-Infinity"}', "[1]"]
    path.write_text(path.read_text() + "\n".join([*other, '{"step": 5, "kind": "train", "loss": null}', '{"step": 6']))
    rows = read_log(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and "not_finite" not in rows[0]
    assert rows[0]["grad_norm"] == INF and rows[3]["loss"] == -INF
    assert all(math.isnan(rows[i]["loss"]) for i in (1, 2, 4))


def test_no_other_writer_of_json():
    calls = {}
    for path in sorted(p for room in ("jaxnlp", "experiments") for p in (ROOT / room).rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        is_json = lambda n: isinstance(n.value, ast.Name) and n.value.id == "json" and n.attr in ("dump", "dumps")
        count = sum(isinstance(n, ast.Attribute) and is_json(n) for n in nodes)
        if count and (name := path.relative_to(ROOT).as_posix()) not in NOT_OURS:
            calls[name] = count
    assert calls == NOT_WRITTEN, "write JSON with jaxnlp.strict_json.dumps"
