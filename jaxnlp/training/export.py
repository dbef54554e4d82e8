"""Exports a trained run in Hugging Face's layout."""

import pathlib

from jaxnlp import distributed
from jaxnlp.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxnlp.interop import huggingface
from jaxnlp.training.load import Loaded
from jaxnlp.trees import select

MAX_SHARD_BYTES = int(5e9)


def save(run: Loaded, folder: pathlib.Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> bool:
    """Writes config.json, safetensors files and, if the tokenizer has that form, tokenizer.json.

    Tuned parameters are merged into their base. All processes must call it.

    Args:
        max_shard_bytes: maximum size of one safetensors file.

    Returns:
        whether the tokenizer was written too (False on every process but the first).

    Raises:
        UserError: a model that the layout does not support.
    """
    params, tuning, tokenizer = distributed.all_gather(run.params), run.program.tuning, run.saved.tokenizer
    if not distributed.first():
        return False
    if tuning is not None:
        params = tuning.merge(select(params, tuning.shapes), select(params, run.program.abstract.params))
    library = tokenizer.library if isinstance(tokenizer, HuggingFaceTokenizer) else None
    huggingface.save(
        folder,
        run.saved.experiment.model,
        params,
        library,
        special_ids=special_ids(run),
        max_shard_bytes=max_shard_bytes,
    )
    return library is not None


def special_ids(run: Loaded) -> dict[str, int]:
    """Ids of the tokens with which texts start and end; empty for a model that cannot generate."""
    model, tokenizer = run.saved.experiment.model, run.saved.tokenizer
    eos_id = tokenizer.eos_id
    if not model.can_generate:
        return {}
    if model.kind != "encoder-decoder":
        return {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id}
    start_id = run.generator().start_ids[0]
    return {"decoder_start_token_id": start_id, "pad_token_id": start_id, "eos_token_id": eos_id}
