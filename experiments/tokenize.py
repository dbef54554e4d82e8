"""Tokenize a corpus once into a folder from which any run can train with `data.source=Tokens(path=...)`.

  python -m experiments.tokenize --config=configs/gpt/tiny.py --out=data/stdlib
  python -m experiments.tokenize --config=configs/gpt/gpt2.py --out=data/web --workers=16 --format=array_record

The config defines the source and the tokenizer; override them with --config.data....
"""

import sys

from absl import flags

from jaxnlp import cli, distributed, runtime, strict_json
from jaxnlp.errors import UserError
from jaxnlp.paths import local
from jaxnlp.scratch import UNCHANGED, scratch, write_errors

CONFIG = cli.define_config()
OUT = flags.DEFINE_string("out", None, "Output folder, for tokenizer.json and a token store per split.")
FORMAT = flags.DEFINE_enum(
    "format", "memmap", ["memmap", "array_record"], "Format of the store: one memory-mapped file, or ArrayRecord files."
)
WORKERS = flags.DEFINE_integer("workers", 0, "Number of worker processes; 0 tokenizes in the main process.")
SPLITS = flags.DEFINE_list("splits", ["train", "validation", "test"], "Splits to tokenize.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Overwrite a corpus in the output folder.")


def main() -> None:
    from jaxnlp import config as configs
    from jaxnlp.data.pipeline import Tokens, open_tokenizer
    from jaxnlp.data.text.sources import check_split
    from jaxnlp.data.text.store import build_store, check_replaceable

    if CONFIG.value is None:
        raise UserError("--config: not given; expected a config file with the data.source to tokenize")
    if OUT.value is None:
        raise UserError("--out: not given; expected a folder to write, for example data/stdlib")
    if WORKERS.value < 0:
        raise UserError(f"--workers={WORKERS.value}: expected 0 or more")
    for split in SPLITS.value:
        check_split(split)
    data = CONFIG.value.data
    configs.check(data, "data.")
    if isinstance(data.source, Tokens):
        raise UserError(f"data.source: {data.source.path} is already tokenized")
    out = local(OUT.value)
    if (out / "tokenizer.json").exists() and not OVERWRITE.value:
        raise UserError(f"--out={out}: already contains a corpus; choose another folder, or set --overwrite")
    print("tokenizer ...", file=sys.stderr)
    tokenizer = open_tokenizer(data)
    for split in SPLITS.value:
        check_replaceable(out / split)
    old = [name for name in ("tokenizer.json", *SPLITS.value) if (out / name).exists()]
    with write_errors(out, UNCHANGED), scratch(out) as new:
        folder = new if old else out  # an existing corpus is replaced when the new one is complete
        for split in SPLITS.value:
            store = build_store(
                folder / split,
                data.source.documents(split),
                tokenizer,
                split=split,
                source_fingerprint=data.source.fingerprint(split),
                format=FORMAT.value,
                workers=WORKERS.value,
                progress=lambda text: print(text, file=sys.stderr),
            )
            meta = store.meta
            counts = f"{meta.num_tokens:,} tokens, {meta.num_documents:,} documents, {meta.num_bytes:,} bytes"
            print(f"{split}: {counts} -> {out / split}")
        (new / "tokenizer.json").write_text(strict_json.dumps(tokenizer.to_json()))
        for name in old:
            (out / name).rename(new / f"old-{name}")
        for split in SPLITS.value if old else ():
            (new / split).rename(out / split)
        (new / "tokenizer.json").rename(out / "tokenizer.json")  # last: without it the corpus is not read
    print(f"\ntrain on it with data.source=Tokens(path={str(out)!r})  (from jaxnlp.data.pipeline import Tokens)")


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.FIRST)
