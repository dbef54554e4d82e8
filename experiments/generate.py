"""Generate text from a trained run.

python -m experiments.generate --workdir=runs/tiny --prompt="def main"
python -m experiments.generate --workdir=runs/tiny --prompt="class" --temperature=0.8 --min_p=0.05 --num_samples=3
python -m experiments.generate --workdir=runs/tiny --prompt="import " --num_beams=4 --num_samples=2 --log_probs
python -m experiments.generate --workdir=runs/tiny --prompt="def f(" --stream --stop="def " --repetition_penalty=1.2
python -m experiments.generate --workdir=runs/instruct --chat --prompt="What is the capital of France?" --temperature=0

For an encoder-decoder (configs/t5/tiny.py, configs/transformer/tiny.py) the prompt is the encoder's input.
"""

import dataclasses
from typing import Any

from absl import flags

from jaxnlp import cli, runtime
from jaxnlp.errors import FieldError, UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "Prompt. Repeat the flag for a batch. Default: the start of a document."
)
TOKENS = flags.DEFINE_integer(
    "max_new_tokens",
    None,
    "Maximum number of new tokens. Default: 120, or fewer if the model has fewer positions left.",
)
MIN_TOKENS = flags.DEFINE_integer("min_new_tokens", 0, "Minimum number of new tokens.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Sampling temperature; 0 is greedy decoding.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Sample from the k most likely tokens; 0: all.")
TOP_P = flags.DEFINE_float("top_p", 0.95, "Sample from the smallest set of tokens with total probability p; 1: all.")
MIN_P = flags.DEFINE_float(
    "min_p", 0.0, "Sample from tokens at least p times as likely as the most likely one; 0: all."
)
REPETITION = flags.DEFINE_float("repetition_penalty", 1.0, "Values above 1 make tokens that already occur less likely.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Number of continuations per prompt.")
BEAMS = flags.DEFINE_integer("num_beams", 0, "Beam width; 0 samples instead. The num_samples best beams are printed.")
PENALTY = flags.DEFINE_float("length_penalty", 1.0, "Beam-search length penalty; values above 0 favour longer texts.")
EARLY = flags.DEFINE_enum(
    "early_stopping", "false", ["true", "false", "never"], "When beam search stops (docs/guides/generation.md)."
)
STOP = flags.DEFINE_multi_string(
    "stop", [], "Stop string: ends a continuation where it appears. Repeat the flag for several."
)
PREFIX = flags.DEFINE_string("forced_prefix", "", "Text that each continuation must begin with.")
START = flags.DEFINE_string(
    "decoder_start_token",
    None,
    "Special token at the start of the decoder's input, or none. Default: the token used in training.",
)
CHAT = flags.DEFINE_boolean(
    "chat", False, "Prompts are a user's messages; the chat template of an imported model lays them out."
)
SYSTEM = flags.DEFINE_string("system", None, "With --chat: the system's message, before the user's.")
SPECIAL = flags.DEFINE_boolean(
    "special_tokens", False, "Names of special tokens in prompts, as <|im_start|>, become the tokens. Default: text."
)
STREAM = flags.DEFINE_boolean("stream", False, "Print tokens as they are generated (first continuation only).")
LOG_PROBS = flags.DEFINE_boolean("log_probs", False, "Print the log-probability of each token.")
SEED = flags.DEFINE_integer("seed", 0, "Random seed for sampling.")


def main() -> None:
    from jaxnlp.data.special_text import with_special_tokens
    from jaxnlp.data.text.sentinels import with_sentinels
    from jaxnlp.inference.beam import beam_search
    from jaxnlp.inference.text import encode_inputs, generate_text
    from jaxnlp.training.chat import as_chat
    from jaxnlp.training.load import load

    _check()
    options = _options()
    assert WORKDIR.value is not None
    run = load(WORKDIR.value, CHECKPOINT.value)
    generator, tokenizer = run.generator(), run.saved.tokenizer
    if START.value is not None:
        start_ids = () if START.value == "none" else (_special(tokenizer, START.value),)
        generator = dataclasses.replace(generator, decoder_start_ids=start_ids)
    if generator.encoder_decoder:
        tokenizer = with_sentinels(tokenizer)
    if SPECIAL.value:
        tokenizer = with_special_tokens(run.saved.tokenizer)
    texts = [text for text in PROMPT.value or [""] for _ in range(1 if BEAMS.value else NUM_SAMPLES.value)]
    if CHAT.value:
        generator, tokenizer, texts = as_chat(run, generator, [_conversation(text) for text in texts])
    inputs = encode_inputs(generator, tokenizer, texts, PREFIX.value)
    prompts, prefixes = inputs.prompts, inputs.prefixes
    num_tokens = generator.fit_max_new_tokens(prompts, 120, prefixes) if TOKENS.value is None else TOKENS.value
    heads_text = ["" if CHAT.value else tokenizer.decode(ids) for ids in inputs.alone]
    printer = _Printer([head for head in heads_text for _ in range(NUM_SAMPLES.value if BEAMS.value else 1)], tokenizer)
    if BEAMS.value:
        hypotheses = beam_search(generator, run.params, prompts, num_tokens, options, forced_prefix=prefixes)
        for i, (row, h) in enumerate((i, h) for i, beams in enumerate(hypotheses) for h in beams):
            stream = inputs.stream(row, tokenizer)
            printer.complete(i, stream.force(h.ids) + stream.close(), h, f", score {h.score:.4f}")
        return
    generations = generate_text(
        generator,
        tokenizer,
        run.params,
        texts,
        num_tokens,
        options,
        SEED.value,
        stop=STOP.value,
        forced_prefix=PREFIX.value,
        on_text=printer.piece if STREAM.value else None,
        chunk=4 if STREAM.value else 16,
    )
    for i, g in enumerate(generations):
        printer.complete(i, g.text, g)


class _Printer:
    """Prints texts one after the other. The first text can be streamed piece by piece."""

    def __init__(self, prompts: list[str], tokenizer: Any):
        self.shown, self._tokenizer = prompts, tokenizer
        self._now, self._printed = -1, ""

    def piece(self, row: int, text: str) -> None:
        """Prints the next piece of the first row. The other rows are printed when they are complete."""
        if row == 0:
            self._begin(0, "")
            print(text, end="", flush=True)
            self._printed += text

    def complete(self, row: int, text: str | None, result: Any, suffix: str = "") -> None:
        """Prints the part of a complete row that has not been printed yet."""
        assert text is not None
        self._begin(row, suffix)
        print(text[len(self._printed) :])
        if LOG_PROBS.value:
            _print_log_probs(result, self._tokenizer)

    def _begin(self, row: int, suffix: str) -> None:
        if row == self._now:
            return
        if len(self.shown) > 1:
            print(f"{'' if row == 0 else chr(10)}--- {row + 1} of {len(self.shown)}{suffix}")
        self._now, self._printed = row, ""
        print(self.shown[row], end="")


def _print_log_probs(result: Any, tokenizer: Any) -> None:
    """Prints a table with the log-probability, probability and text of each token, and their sum."""
    pieces, lines = tokenizer.token_bytes(), []
    for token, log_prob in zip(result.ids, result.log_probs, strict=True):
        piece = pieces[token]
        lines.append((log_prob, f"special token {token}" if piece is None else _quoted(piece)))
    if result.end_log_prob is not None:
        lines.append((result.end_log_prob, "end of text"))
    print(f"\n  {'log-prob':>9} {'prob':>8}  token")
    for log_prob, text in lines:
        print(f"  {log_prob:9.4f} {2.718281828459045**log_prob:8.2%}  {text}")
    print(f"  {sum(log_prob for log_prob, _ in lines):9.4f} {'':8}  sum of {len(lines)}")


def _quoted(piece: bytes) -> str:
    """A token's text in quotes; as bytes, b'...', if it is part of a character."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)


def _special(tokenizer: Any, name: str) -> int:
    try:
        return tokenizer.special_id(name)
    except FieldError as error:
        raise UserError(f"--decoder_start_token={name}: {error.expected}") from None


def _conversation(text: str) -> list[dict[str, str]]:
    """The messages of --system and a user's text."""
    system = [] if SYSTEM.value is None else [{"role": "system", "content": SYSTEM.value}]
    return [*system, {"role": "user", "content": text}]


def _check() -> None:
    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected the folder of a trained run, for example runs/tiny")
    if NUM_SAMPLES.value < 1:
        raise UserError(f"--num_samples={NUM_SAMPLES.value}: expected a positive number")
    if BEAMS.value < 0:
        raise UserError(f"--num_beams={BEAMS.value}: expected a positive number, or 0 for sampling")
    if 0 < BEAMS.value < NUM_SAMPLES.value:
        raise UserError(f"--num_samples={NUM_SAMPLES.value}: expected at most --num_beams={BEAMS.value}")
    if not 0 <= SEED.value < 2**32:
        raise UserError(f"--seed={SEED.value}: expected an integer in [0, 2^32)")
    if SYSTEM.value is not None and not CHAT.value:
        raise UserError(f"--system={SYSTEM.value}: applies to conversations only; expected --chat with it")
    if CHAT.value and not PROMPT.value:
        raise UserError("--chat: no message; expected the user's message as --prompt")
    if "" in STOP.value:
        raise UserError("--stop=: expected a non-empty text")
    if BEAMS.value and (STOP.value or STREAM.value):
        name = "--stop" if STOP.value else "--stream"
        raise UserError(
            f"{name}: not supported with --num_beams, as beams are only complete at the end; remove one of them"
        )


def _options() -> Any:
    """The decoding options from the flags: a BeamSearch or a Sampling."""
    from jaxnlp.inference.beam import BeamSearch
    from jaxnlp.inference.sampling import Sampling

    common: dict[str, Any] = {"repetition_penalty": REPETITION.value, "min_new_tokens": MIN_TOKENS.value}
    sampling = Sampling(
        temperature=TEMPERATURE.value, top_k=TOP_K.value, top_p=TOP_P.value, min_p=MIN_P.value, **common
    )
    if not BEAMS.value:
        return sampling
    early = {"true": True, "false": False, "never": "never"}[EARLY.value]
    return BeamSearch(
        num_beams=BEAMS.value,
        length_penalty=PENALTY.value,
        early_stopping=early,
        num_return=NUM_SAMPLES.value,
        **common,
    )


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
