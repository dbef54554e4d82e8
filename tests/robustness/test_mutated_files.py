"""Each reader of a file with changed bytes succeeds or raises a UserError: never another exception, and no crash."""

import pathlib
import tempfile

import numpy as np
import pytest

from jaxnlp.errors import UserError
from tests.robustness import checkpoint_formats, data_formats
from tests.robustness.mutations import mutated

FORMATS = {**data_formats.FORMATS, **checkpoint_formats.FORMATS}
MANY, FEW = 10_000, 25
LONGEST = 1500  # characters of a message


@pytest.fixture
def folder(tmp_path):
    """A folder in memory if the system has one: 10,000 files are written."""
    memory = pathlib.Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield pathlib.Path(name)


def failures(key: str, folder: pathlib.Path, seeds: range) -> dict[int, str]:
    """seed -> what went wrong."""
    format, wrong = FORMATS[key], {}
    format.write(folder)
    path = folder / format.name
    valid = path.read_bytes()
    format.read(folder)  # the valid file is read
    for seed in seeds:
        path.write_bytes(mutated(valid, np.random.default_rng(seed), format.is_text))
        try:
            format.read(folder)
        except UserError as e:
            if len(str(e)) > LONGEST:
                wrong[seed] = f"a message of {len(str(e))} characters: {str(e)[:200]}"
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt):
                raise
            wrong[seed] = f"{type(e).__name__}: {str(e)[:200]}"
    return wrong


@pytest.mark.parametrize("key", FORMATS)
def test_a_few(key, folder):
    assert failures(key, folder, range(FEW)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("key", FORMATS)
def test_many(key, folder):
    assert failures(key, folder, range(FEW, MANY)) == {}


def test_the_changes_change_what_is_read():
    """Otherwise the tests above would read valid files only."""
    for key in ("jsonl", "parquet"):
        data = FORMATS[key]
        with tempfile.TemporaryDirectory() as name:
            data.write(pathlib.Path(name))
            valid = (pathlib.Path(name) / data.name).read_bytes()
        changed = [mutated(valid, np.random.default_rng(seed), data.is_text) != valid for seed in range(200)]
        assert sum(changed) > 190


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_string_that_is_not_utf8_is_named_by_its_row(tmp_path, nested):
    """Writers do not check: `pyarrow` writes such a column, and raises only when a value is read."""
    import pyarrow
    import pyarrow.parquet

    from jaxnlp.data.records import read_records
    from jaxnlp.data.text.sources import Files

    raw = pyarrow.array([f"Satz {i}".encode() for i in range(1500)] + [b"R\xc9UNION"], pyarrow.binary())
    column = pyarrow.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
    table = pyarrow.table({"text": pyarrow.StructArray.from_arrays([column], ["a"]) if nested else column})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(
        UserError,
        match=r"x.parquet, row 1501: cannot be read; correct or remove the row \(not UTF-8 text, byte 0xc9\)$",
    ):
        list(read_records(tmp_path / "x.parquet"))
    if not nested:
        with pytest.raises(UserError, match="row 1501: cannot be read"):
            list(Files(train=str(tmp_path / "x.parquet"), holdout=0.0).documents("train"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_embd": "8"}, "config.json: n_embd='8': expected a number or a truth value, without quotation marks"),
        ({"layer_norm_epsilon": "1e-5"}, "config.json: layer_norm_epsilon='1e-5': expected a number"),
        ({"tie_word_embeddings": "false"}, "config.json: tie_word_embeddings='false': expected a number or a truth"),
        ({"n_head": 3}, "config.json: n_head=3: does not divide"),
        ({"n_layer": 10**20}, "n_layer=100000000000000000000: the checkpoint has only"),
        ({"n_embd": None, "n_head": None}, "config.json: n_head=None: expected int, got NoneType"),
        ({"attn_pdrop": []}, "config.json: attn_pdrop=[]: expected what transformers writes there"),
    ],
)
def test_a_value_of_config_json_is_named_as_it_stands_there(tmp_path, change, words):
    import json

    from jaxnlp.interop.huggingface import read_config

    FORMATS["config.json gpt2"].write(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError) as caught:
        read_config(tmp_path)
    assert words in str(caught.value) and len(str(caught.value)) < 500
