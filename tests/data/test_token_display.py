"""Token labels show exactly what each token holds."""

import pytest

from jaxnlp.data import tokenizer as tokenizers
from jaxnlp.data.huggingface_tokenizer import HuggingFace
from jaxnlp.data.token_display import token_labels

from .test_tokenizer import CORPUS, huggingface_file


def test_white_space_and_bytes_are_visible():
    tokenizer = tokenizers.ByteTokenizer(("[CLS]", "[MASK]", "[OTHER]"))
    text = "a b\n\t\r\x00é"
    wanted = ["a", "␣", "b", "↵", "⇥", "<0D>", "<00>", "<C3>", "<A9>"]
    assert token_labels(tokenizer, tokenizer.encode_batch([text])[0]) == wanted
    assert token_labels(tokenizer, [256, 257, 258, 259]) == ["<|endoftext|>", "[CLS]", "[MASK]", "<special 259>"]


@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface"])
def test_labels_are_the_text_in_order(kind, tmp_path):
    config = (
        tokenizers.SentencePiece(vocab_size=400, special_tokens=("[SEP]",))
        if kind == "sentencepiece"
        else HuggingFace(path=str(huggingface_file(tmp_path)))
    )
    tokenizer = config.build(lambda: iter(CORPUS), tmp_path)
    text = "def function_7(value):\n    return 中 \\xe4 \u200b"
    labels = token_labels(tokenizer, tokenizer.encode_batch([text])[0])
    assert len(labels) < len(text)
    joined = "".join(labels).replace("␣", " ").replace("↵", "\n").replace("<E4><B8><AD>", "中")
    joined = joined.replace("<E2><80><8B>", "\u200b")
    assert joined == text
    assert token_labels(tokenizer, [tokenizer.eos_id]) == ["<|endoftext|>"]
