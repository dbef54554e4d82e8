"""nanoGPT and Hugging Face transformers as contenders. Runs in the peers' virtual environment.

python torch_peer.py train   --impl=nanogpt|hf|bert --shape=baby [--compile] [--bf16] [--keep]
python torch_peer.py forward --impl=bert --shape=bert --attention=eager [--bf16] [--keep]
python torch_peer.py decode  --shape=gpt2 --batch=1 --prompt=32 --new=32 [--beams=4] [--keep]
"""

import argparse
import contextlib
import importlib
import os
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import harness
from shapes import PREDICTED, SHAPES

parser = argparse.ArgumentParser()
parser.add_argument("what", choices=["train", "forward", "decode"])
parser.add_argument("--impl", default="nanogpt")
parser.add_argument("--shape", default="baby")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--keep", action="store_true", help="the allocator settings of jaxnlp.runtime")
parser.add_argument("--nanogpt", default="")
parser.add_argument("--attention", default="sdpa", choices=["eager", "sdpa"])
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--prompt", type=int, default=32)
parser.add_argument("--new", type=int, default=128)
parser.add_argument("--beams", type=int, default=1)


def main() -> None:
    out = harness.protocol()
    a = parser.parse_args()
    if a.keep:
        harness.keep_freed_memory()
    torch: Any = importlib.import_module("torch")

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    {"train": train, "forward": forward, "decode": decode}[a.what](out, a, torch)


def build(a, torch, positions: int) -> Any:
    """The model and a function (model, x, y) -> loss."""
    s = SHAPES[a.shape]
    if a.impl == "nanogpt":
        sys.path.insert(0, a.nanogpt)
        nanogpt: Any = importlib.import_module("model")
        config = nanogpt.GPTConfig(
            block_size=positions,
            vocab_size=s["vocab"],
            n_layer=s["layers"],
            n_head=s["heads"],
            n_embd=s["dim"],
            dropout=0.0,
            bias=False,
        )
        return nanogpt.GPT(config), lambda model, x, y: model(x, y)[1]
    transformers: Any = importlib.import_module("transformers")
    if a.impl == "bert":
        model = transformers.BertForMaskedLM(bert_config(a, transformers, positions))
        full_mask = torch.ones((s["batch"], positions), dtype=torch.long)
        return (
            model,
            lambda model, x, y: (
                model(input_ids=x, attention_mask=full_mask, token_type_ids=full_mask - 1, labels=y).loss
            ),
        )
    config = transformers.GPT2Config(
        vocab_size=s["vocab"],
        n_positions=positions,
        n_embd=s["dim"],
        n_layer=s["layers"],
        n_head=s["heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=None,
        attn_implementation=a.attention,
    )
    return transformers.GPT2LMHeadModel(config), lambda model, x, y: model(input_ids=x, labels=x).loss


def bert_config(a, transformers, positions: int) -> Any:
    s = SHAPES[a.shape]
    return transformers.BertConfig(
        vocab_size=s["vocab"],
        max_position_embeddings=positions,
        hidden_size=s["dim"],
        num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"],
        intermediate_size=4 * s["dim"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=a.attention,
    )


def examples(a, torch) -> list[Any]:
    """16 pairs (x, y) of inputs and labels: next tokens, or for BERT the masked tokens and -100 elsewhere."""
    import numpy as np

    s, random = SHAPES[a.shape], np.random.default_rng(0)
    data = random.integers(0, s["vocab"], (16, s["batch"], s["length"] + 1))
    if a.impl != "bert":
        return [(torch.from_numpy(b[:, :-1].copy()), torch.from_numpy(b[:, 1:].copy())) for b in data]
    is_predicted = random.permuted(np.broadcast_to(np.arange(s["length"]), data[..., 1:].shape), axis=-1) < PREDICTED
    labels = np.where(is_predicted, data[..., 1:], -100)
    return [(torch.from_numpy(x.copy()), torch.from_numpy(y)) for x, y in zip(data[..., :-1], labels, strict=True)]


def train(out, a, torch) -> None:
    s = SHAPES[a.shape]
    model, loss_of = build(a, torch, s["length"])
    model.train()
    if a.impl == "nanogpt":
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    else:
        decay = [p for p in model.parameters() if p.dim() >= 2]
        no_decay = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    compiled: Any = torch.compile(model) if a.compile else model
    autocast = (lambda: torch.autocast("cpu", torch.bfloat16)) if a.bf16 else contextlib.nullcontext
    batches = examples(a, torch)
    current = {"i": 0, "loss": None}

    def step():
        x, y = batches[current["i"] % 16]
        current["i"] += 1
        with autocast():
            loss = loss_of(compiled, x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        current["loss"] = loss

    harness.serve(out, step, lambda: float(current["loss"].detach()), info={"torch": torch.__version__})


def forward(out, a, torch) -> None:
    """The encoder and its pooler, on full rows with an attention mask."""
    transformers: Any = importlib.import_module("transformers")
    model = transformers.BertModel(bert_config(a, transformers, SHAPES[a.shape]["length"])).eval()
    tokens = [x for x, _ in examples(a, torch)]
    full_mask = torch.ones_like(tokens[0])
    autocast = (lambda: torch.autocast("cpu", torch.bfloat16)) if a.bf16 else contextlib.nullcontext
    current: dict[str, Any] = {"i": 0}

    def step():
        with torch.inference_mode(), autocast():
            current["out"] = model(tokens[current["i"] % 16], attention_mask=full_mask, token_type_ids=full_mask - 1)
        current["i"] += 1

    info = {"torch": torch.__version__, "transformers": transformers.__version__}
    harness.serve(out, step, lambda: float(current["out"].pooler_output[0, 0]), info=info)


def decode(out, a, torch) -> None:
    import numpy as np

    transformers: Any = importlib.import_module("transformers")
    s = SHAPES[a.shape]
    a.impl = "hf"
    model, _ = build(a, torch, max(s["length"], a.prompt + a.new))
    model.eval()
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, s["vocab"], (a.batch, a.prompt)))
    arguments = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": a.new,
        "min_new_tokens": a.new,
        "do_sample": False,
        "use_cache": True,
        "pad_token_id": 0,
    }
    if a.beams > 1:
        arguments |= {"num_beams": a.beams, "early_stopping": False}

    def step():
        with torch.inference_mode():
            rows = model.generate(input_ids=ids, **arguments)
        assert rows.shape[1] == a.prompt + a.new

    info = {"torch": torch.__version__, "transformers": transformers.__version__}
    harness.serve(out, step, lambda: None, warmup=1, info=info)


if __name__ == "__main__":
    main()
