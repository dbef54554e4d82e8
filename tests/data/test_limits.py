"""Libraries' default limits do not bound what is read."""

import csv
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from jaxnlp.data.records import read_records
from jaxnlp.data.text.text_files import open_parquet, parquet_batches, read_file
from jaxnlp.errors import UserError

LONG = "a long report, " * 20_000  # 300,000 characters


@pytest.mark.parametrize(("name", "mark"), [("x.csv", ","), ("x.tsv", "\t"), ("x.csv.zst", ",")])
def test_fields_longer_than_the_csv_modules_limit(tmp_path, name, mark):
    out = io.StringIO()
    rows = csv.writer(out, delimiter=mark, quoting=csv.QUOTE_MINIMAL if mark == "," else csv.QUOTE_NONE)
    rows.writerows([["text", "label"], [LONG, "x"], ["short", "y"]])
    data = out.getvalue().encode()
    (tmp_path / name).write_bytes(zstandard.compress(data) if name.endswith("zst") else data)
    assert [r.fields["text"] for r in read_records(tmp_path / name)] == [LONG, "short"]


def test_integers_of_more_digits_than_python_converts(tmp_path):
    digits = "7" * 5000
    (tmp_path / "x.jsonl").write_text(f'{{"text": "a", "id": {digits}}}\n')
    (record,) = read_records(tmp_path / "x.jsonl")
    assert json.dumps(record.fields["id"]) == digits
    assert list(read_file(tmp_path / "x.jsonl", "text", "file")) == ["a"]


def test_json_that_is_nested_too_deeply_is_an_error_of_one_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "id": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(UserError, match="x.jsonl:1: its JSON is nested too deeply"):
        list(read_records(tmp_path / "x.jsonl"))


@pytest.mark.parametrize("window_log", [28, 31])
def test_zstandard_windows_above_the_librarys_limit(tmp_path, window_log):
    """A frame as `zstd --long=28` and `--long=31` write it: a header with the window, and one raw block."""
    text = b"text in a long window\n"
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([window_log - 10 << 3])
    frame = header + (len(text) << 3 | 1).to_bytes(3, "little") + text
    assert zstandard.get_frame_parameters(frame).window_size == 1 << window_log
    assert zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(io.BytesIO(frame)).read() == text
    (tmp_path / "x.txt.zst").write_bytes(frame)
    assert list(read_file(tmp_path / "x.txt.zst", "text", "line")) == [text.decode().strip()]


def test_long_rows_of_parquet_are_read_in_small_batches(tmp_path):
    rows = [LONG + str(i) for i in range(400)]
    table = pyarrow.table({"text": pyarrow.array(rows), "nested": [{"text": row[-20:]} for row in rows]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", use_dictionary=False)
    file = open_parquet(tmp_path / "x.parquet")
    sizes = [batch.num_rows for batch in parquet_batches(tmp_path / "x.parquet", file, ["text"])]
    assert sum(sizes) == 400 and max(sizes) * len(LONG) < 100 << 20
    assert list(read_file(tmp_path / "x.parquet", "text", "file")) == rows


def test_times_that_python_lacks_are_text(tmp_path):
    """Nanoseconds and years above 9999 would need pandas; other rows of the column keep their values."""
    times = pyarrow.array([1000, 1001], pyarrow.timestamp("ns"))
    columns = {
        "time": times,
        "duration": pyarrow.array([1001, 2000], pyarrow.duration("ns")),
        "date": pyarrow.array([2**26, 1], pyarrow.date32()),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    first, second = (record.fields for record in read_records(tmp_path / "x.parquet"))
    assert second["time"] == times.cast(pyarrow.string())[1].as_py() == "1970-01-01 00:00:00.000001001"
    assert first["duration"] == 1001 and first["date"] == columns["date"].cast(pyarrow.string())[0].as_py()
    pyarrow.parquet.write_table(pyarrow.table({"time": times[:1]}), tmp_path / "y.parquet")
    (record,) = read_records(tmp_path / "y.parquet")
    assert str(record.fields["time"]) == "1970-01-01 00:00:00.000001"
