"""Packing loses no token; the order of examples is one global sequence for any number of processes, also on resume."""

import collections
import json

import numpy as np
import pytest

from jaxnlp.data import pipeline
from jaxnlp.data import tokenizer as tokenizers
from jaxnlp.data.text import packing, sources
from jaxnlp.data.text.store import BLOCK, TokenStore, build_store
from jaxnlp.errors import UserError
from jaxnlp.scratch import PREFIX, scratch

TOKENIZER = tokenizers.ByteTokenizer()
SEP = TOKENIZER.eos_id


def documents(count=23, seed=0):
    random = np.random.default_rng(seed)
    return ["".join(chr(97 + c) for c in random.integers(0, 26, random.integers(1, 40))) for _ in range(count)]


def store(folder, texts=None, **kwargs) -> TokenStore:
    texts = documents() if texts is None else texts
    return build_store(folder / "store", texts, TOKENIZER, split="train", source_fingerprint="test", **kwargs)


def row(texts):
    """The tokens of the store, by a straightforward loop."""
    return [SEP, *(i for text in texts for i in [*text.encode(), SEP])]


@pytest.mark.parametrize("format", ["memmap", "array_record"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_holds_every_token_in_order(tmp_path, format, workers):
    if format == "memmap" and workers:
        texts = documents(200)
    else:
        texts = [text * 200 for text in documents(20)]  # several blocks
        assert len(row(texts)) > 3 * BLOCK
    made = store(tmp_path, texts, format=format, workers=workers)
    assert made.read(0, 10**9).tolist() == row(texts)
    assert made.read(BLOCK - 3, BLOCK + 5).tolist() == row(texts)[BLOCK - 3 : BLOCK + 5]
    assert [TOKENIZER.decode(ids) for ids in made.documents()] == texts
    assert made.meta.num_bytes == sum(len(t.encode()) for t in texts) and made.meta.num_documents == len(texts)


@pytest.mark.parametrize("length", [1, 7, 16, 1000])
def test_packing_loses_no_token_and_repeats_none(tmp_path, length):
    made = store(tmp_path)
    windows = packing.Windows(made, length)
    batch = packing.pack(np.stack([windows[i] for i in range(len(windows))]), SEP)
    real = batch["weights"] > 0
    tokens = row(documents())
    assert batch["tokens"][real].tolist() == tokens[:-1]
    assert batch["targets"][real].tolist() == tokens[1:]


def test_segments_and_positions_restart_with_each_document(tmp_path):
    windows = packing.Windows(store(tmp_path), 16)
    batch = packing.pack(np.stack([windows[i] for i in range(len(windows))]), SEP)
    for tokens, segments, places in zip(batch["tokens"], batch["segment_ids"], batch["positions"], strict=True):
        for t in range(1, 16):
            if segments[t] == 0:
                continue
            begins = tokens[t] == SEP
            assert segments[t] == segments[t - 1] + begins
            assert places[t] == (0 if begins else places[t - 1] + 1)
        assert places[0] == 0
    assert set(packing.pack(windows[0][None], SEP, attend_across_documents=True)) == {"tokens", "targets", "weights"}


def documents_of(count):
    """Documents that make a store of exactly `count` tokens."""
    texts = documents()
    while len(row(texts)) >= count:
        texts.pop()
    return [*texts, "z" * (count - len(row(texts)) - 1)]


def config(**fields):
    return pipeline.DataConfig(**{"seq_len": 8, "batch_size": 4, "prefetch_threads": 0, **fields})


def examples(batches, count):
    """The next `count` batches' rows, as tuples of targets."""
    return [tuple(r) for _ in range(count) for r in next(batches)["targets"].tolist()]


def test_an_epoch_reads_every_example_once_and_the_next_in_another_order(tmp_path):
    made = store(tmp_path, documents_of(60 * 8 + 1))
    windows = [tuple(np.maximum(w[1:], 0).tolist()) for w in (packing.Windows(made, 8)[i] for i in range(60))]
    assert len(packing.Windows(made, 8)) == 60
    batches = pipeline.TrainBatches(made, config(batch_size=3), 0)
    first, second = examples(batches, 20), examples(batches, 20)
    assert collections.Counter(first) == collections.Counter(second) == collections.Counter(windows)
    assert first != second and windows not in (first, second)
    plain = pipeline.TrainBatches(made, config(batch_size=3, shuffle=False), 0)
    assert examples(plain, 40) == windows * 2


@pytest.mark.parametrize("threads", [0, 2])
def test_a_resumed_run_reads_what_was_not_yet_read_at_any_number_of_processes(tmp_path, threads):
    made = store(tmp_path)
    setup = config(prefetch_threads=threads)
    wanted = examples(pipeline.TrainBatches(made, setup), 40)
    # 13 batches on one process, then 9 on two, then 18 on four: every process reads its own rows.
    read, position = [], 0
    for processes, count in ((1, 13), (2, 9), (4, 18)):
        share = 4 // processes
        parts = [
            pipeline.TrainBatches(made, setup, position, range(p * share, (p + 1) * share)) for p in range(processes)
        ]
        for _ in range(count):
            for part in parts:
                read += examples(part, 1)
        assert len({part.state["position"] for part in parts}) == 1
        position = parts[0].state["position"]
    assert read == wanted


def test_evaluation_reads_every_token_once_whatever_the_batch(tmp_path):
    made = store(tmp_path)
    for size in (1, 4, 50):
        targets = []
        for batch in pipeline.eval_batches(made, config(batch_size=size)):
            assert batch["tokens"].shape == (size, 8)
            targets += batch["targets"][batch["weights"] > 0].tolist()
        assert targets == row(documents())[1:]
    assert len(list(pipeline.eval_batches(made, config(), limit=2))) == 2


def test_the_cache_is_used_rebuilt_when_damaged_and_follows_the_source(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n".join(documents(80)))
    files = sources.Files(train=str(tmp_path / "a.txt"), document="line", holdout=0.2)
    setup = config(source=files, tokenizer=tokenizers.Bytes(), cache_dir=str(tmp_path / "cache"))
    first = pipeline.open_split(setup, "train", TOKENIZER)
    stamp = (first.path / "meta.json").stat().st_mtime_ns
    again = pipeline.open_split(setup, "train", TOKENIZER)
    assert again.path == first.path and (again.path / "meta.json").stat().st_mtime_ns == stamp
    with (first.path / "tokens.bin").open("r+b") as file:
        file.truncate(10)
    assert len(pipeline.open_split(setup, "train", TOKENIZER)) == len(first)
    assert "rebuilding a damaged cache" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("\n".join(documents(90)))
    assert pipeline.open_split(setup, "train", TOKENIZER).path != first.path


def test_a_run_removes_what_killed_ones_left_in_its_cache_and_nothing_of_running_ones(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(documents(80)))
    files = sources.Files(train=str(tmp_path / "a.txt"), document="line", holdout=0.2)
    setup = config(source=files, tokenizer=tokenizers.Bytes(), cache_dir=str(tmp_path / "cache"))
    pipeline.open_split(setup, "train", TOKENIZER)
    tokens = tmp_path / "cache" / "tokens"
    with scratch(tokens) as running:
        left = [tmp_path / "cache" / room / f"{PREFIX}killed" / "half" for room in ("tokens", "tokenizers", "library")]
        for folder in left:
            folder.mkdir(parents=True)
        pipeline.open_split(setup, "train", TOKENIZER)  # although its store is complete
        assert not any(folder.parent.exists() for folder in left) and running.exists()
    assert len(list(tokens.iterdir())) == 1


@pytest.mark.parametrize("name", ["my notes.txt", "tokens.txt", "deep"])
def test_a_store_does_not_replace_a_folder_of_other_files(tmp_path, name):
    (tmp_path / "store" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"store: contains {name}, which is not part of a token store"):
        store(tmp_path)
    assert (tmp_path / "store" / name).exists()


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def broken():
        yield "a document"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, broken())
    assert list(tmp_path.iterdir()) == []


def test_stores_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match=r"no token store"):
        TokenStore(tmp_path)
    made = store(tmp_path)
    with (made.path / "tokens.bin").open("ab") as file:
        file.write(b"xx")
    with pytest.raises(UserError, match=r"tokens.bin: \d+ bytes, expected \d+"):
        TokenStore(made.path)
    (made.path / "meta.json").write_text('{"version": 0}')
    with pytest.raises(UserError, match=r"version 0, expected \d"):
        TokenStore(made.path)
    with pytest.raises(UserError, match="no documents in this split"):
        store(tmp_path, [])


def test_the_saved_form_of_a_store_and_of_its_fingerprint_does_not_change(tmp_path):
    made = store(tmp_path, ["one", "two"])
    assert json.loads((made.path / "meta.json").read_text()) == {
        "split": "train",
        "format": "memmap",
        "dtype": "uint16",
        "num_tokens": 9,
        "num_documents": 2,
        "num_bytes": 6,
        "separator": 256,
        "vocab_size": 257,
        "tokenizer": "a953d733df3b2b06",
        "source": "test",
        "content": "420fa0772a21c8a75634f940",
        "version": 2,
    }
    assert pipeline.corpus_fingerprint(made, pipeline.DataConfig(seq_len=16)) == (
        "9 tokens, content 420fa0772a21c8a75634f940, tokenizer a953d733df3b2b06, shuffle=True seed=0 seq_len=16"
    )
