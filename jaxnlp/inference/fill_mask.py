"""Fill-mask predictions of a trained encoder, and the encoding of texts with special tokens and masks."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxnlp.data.joined_text import encode_between
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError, UserError
from jaxnlp.inference.bound_model import BoundModel

NAMES = {"cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>"), "mask": ("[MASK]", "<mask>")}


@dataclasses.dataclass(frozen=True)
class Row:
    """[CLS] text [SEP], or [CLS] a [SEP] b [SEP]. tokens, token_type_ids: (T,). masks: positions of the masks."""

    tokens: np.ndarray
    token_type_ids: np.ndarray
    masks: list[int]


@dataclasses.dataclass(frozen=True)
class Guess:
    """A candidate token at a mask. piece: its text; None for a special token. probability: over the vocabulary."""

    token: int
    piece: str | None
    probability: float


def special_token(model: BoundModel, role: str) -> tuple[str, int]:
    """(name, id) of the token for "cls", "sep" or "mask": the name that the run's task configures, or a usual one.

    Raises:
        UserError: the vocabulary has no such token.
    """
    tokenizer, task = model.tokenizer, model.task
    configured = {"cls": task.cls, "sep": task.sep, "mask": task.mask}[role]
    names = NAMES[role] if configured is None else (configured,)
    for name in names:
        if tokenizer.has_special(name):
            return name, tokenizer.special_id(name)
    raise UserError(f"data.tokenizer: the vocabulary has no {' or '.join(names)}, which encoder inputs need")


def encoder_row(model: BoundModel, text: str, second: str | None = None) -> Row:
    """Encodes a text, or a pair, as the encoder read them in training. The mask's name becomes the mask token.

    Raises:
        UserError: more tokens than the model has positions.
    """
    config = model.config.body
    (_, cls), (_, sep) = special_token(model, "cls"), special_token(model, "sep")
    parts = [np.asarray([*encode_masked(model, part), sep], np.int32) for part in (text, second) if part is not None]
    tokens = np.concatenate([[cls], *parts]).astype(np.int32)
    token_type_ids = np.zeros_like(tokens)
    if second is not None and config.num_types > 1:
        token_type_ids[1 + len(parts[0]) :] = 1
    if config.length_limit is not None and len(tokens) > config.length_limit:
        raise UserError(f"text: has {len(tokens)} tokens; model.max_length is {config.length_limit}; shorten the text")
    mask = _mask(model)
    return Row(tokens, token_type_ids, [] if mask is None else np.flatnonzero(tokens == mask[1]).tolist())


def encode_masked(model: BoundModel, text: str) -> list[int]:
    """The tokens of a text, with the mask token in place of the mask's name, such as "[MASK]".

    If tokens include the space before a word, so does the mask: "the [MASK]" is two tokens.
    """
    tokenizer, mask = model.tokenizer, _mask(model)
    if mask is None:
        return tokenizer.encode_batch([text])[0]
    name, token = mask
    parts = text.split(name)
    if _spaces_in_tokens(tokenizer):
        parts = [part.removesuffix(" ") for part in parts[:-1]] + parts[-1:]
    return encode_between(tokenizer, parts, [token] * (len(parts) - 1))


def _mask(model: BoundModel) -> tuple[str, int] | None:
    try:
        return special_token(model, "mask")
    except UserError:
        return None


def _spaces_in_tokens(tokenizer: Tokenizer) -> bool:
    return any(piece is not None and len(piece) > 1 and piece[:1] == b" " for piece in tokenizer.token_bytes())


def fill_mask(model: BoundModel, params: Any, text: str, top: int = 5) -> list[list[Guess]]:
    """The `top` most likely tokens at each mask of a text. Each mask is predicted independently.

    Raises:
        UserError: a model without a masked-word head, or a text without a mask.
    """
    if "masked_lm" not in model.config.heads:
        kind = type(model.config).__name__
        raise UserError(
            f"{kind}: the model has no masked-word head; train one, for example with configs/bert/tiny_pretrain.py"
        )
    if top < 1:
        raise FieldError("top", top, "expected 1 or more")
    name, _ = special_token(model, "mask")
    row = encoder_row(model, text)
    if not row.masks:
        raise UserError(f"text={text!r}: contains no {name}; put it in place of a word to predict")
    masked_positions = np.asarray([row.masks], np.int32)

    def probabilities(params: Any) -> jax.Array:
        output = model.apply(
            params, row.tokens[None], token_type_ids=row.token_type_ids[None], masked_positions=masked_positions
        )
        logits_MV = output["masked_lm"][0]
        return jax.nn.softmax(logits_MV[:, : model.tokenizer.vocab_size])  # not of ids that round the size up

    with model.context(batch=None):
        probabilities_MV = np.asarray(jax.jit(probabilities)(params))
    pieces = model.tokenizer.token_bytes()
    show = lambda i: None if pieces[i] is None else pieces[i].decode(errors="replace")
    best = np.argsort(-probabilities_MV, axis=-1)[:, :top]
    return [[Guess(int(i), show(i), float(p[i])) for i in ids] for ids, p in zip(best, probabilities_MV, strict=True)]
