"""A model whose tokenizer has gaps in its ids generates, scores and shows what transformers does."""

import pytest
import tokenizers

import jaxnlp
from tests.reference import torch, transformers

WORDS = ["<unk>", "<s>", "</s>", "the", "cat", "sat", "on", "a", "mat"]
LAST = {"all": 38, "day": 39}  # 9 to 37 are the ids of no token


@pytest.mark.slow
def test_a_llama_reads_and_generates_the_last_ids(tmp_path):
    library = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)} | LAST, "<unk>")
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.enable_truncation(3)  # as a file may say; neither acts
    library.enable_padding(length=7)
    library.save(str(tmp_path / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.5,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        theirs.lm_head.weight[39] *= 9  # so that one of the last ids is likely
    theirs.save_pretrained(tmp_path)
    ours, prompt = jaxnlp.load(tmp_path), "the cat sat on a mat all day"
    assert ours.config.vocab_size == ours.tokenizer.vocab_size == 40
    ids = ours.tokenizer.encode_batch([prompt])[0]
    assert ids == [3, 4, 5, 6, 7, 8, 38, 39] and ours.tokenizer.decode(ids) == prompt
    start = list(ours.loaded.decoder_start_ids or ours.loaded.generator().start_ids)
    wanted = theirs.generate(torch.tensor([[*start, *ids]]), max_new_tokens=8, do_sample=False)[0, len(start) + 8 :]
    (generation,) = ours.generations([prompt], 8)
    assert generation.ids == [i for i in wanted.tolist() if i != 2] and 39 in generation.ids
    with torch.no_grad():
        log_probs = theirs(torch.tensor([[*start, *ids]])).logits[0].log_softmax(-1)
    score = sum(float(log_probs[len(start) + 5 + i, token]) for i, token in enumerate([38, 39]))
    assert ours.score(["the cat sat on a mat"], [" all day"]) == [pytest.approx(score, abs=1e-3)]
