"""Generate text from a trained run.

python -m experiments.generate --workdir=runs/tiny --prompt="def main"
python -m experiments.generate --workdir=runs/tiny --prompt="class " --temperature=0.8 --top_p=0.95 --num_samples=3
python -m experiments.generate --workdir=runs/tiny --prompt="import " --num_beams=4 --num_samples=2
"""

from absl import flags

from jaxnlp import cli, runtime
from jaxnlp.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "Text to continue; give it several times for several. None begins a document."
)
TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Tokens to generate at most; by default 120, or as many as the model has positions for."
)
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 takes the most likely token each time.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from the k most likely tokens; 0 from all.")
TOP_P = flags.DEFINE_float("top_p", 0.95, "Draw from the fewest tokens whose probability reaches p; 1 from all.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Continuations of each prompt.")
BEAMS = flags.DEFINE_integer("num_beams", 0, "Beam search so wide instead of drawing; num_samples best are shown.")
PENALTY = flags.DEFINE_float("length_penalty", 1.0, "Of beam search: above 0 favours long texts.")
SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")


def main() -> None:
    from jaxnlp.generate.beam import BeamSearch, beam_search
    from jaxnlp.generate.sampling import Sampling
    from jaxnlp.train.load import load

    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected the folder of a trained run, as runs/tiny")
    if NUM_SAMPLES.value < 1:
        raise UserError(f"--num_samples={NUM_SAMPLES.value}: expected a positive number")
    if BEAMS.value < 0:
        raise UserError(f"--num_beams={BEAMS.value}: expected a positive number, or 0 to draw")
    if 0 < BEAMS.value < NUM_SAMPLES.value:
        raise UserError(f"--num_samples={NUM_SAMPLES.value}: beam search finds --num_beams={BEAMS.value} texts at most")
    if not 0 <= SEED.value < 2**32:
        raise UserError(f"--seed={SEED.value}: expected a number in [0, 2^32)")
    sampling = Sampling(temperature=TEMPERATURE.value, top_k=TOP_K.value, top_p=TOP_P.value)
    run = load(WORKDIR.value, CHECKPOINT.value)
    tokenizer = run.saved.tokenizer
    texts = [text for text in PROMPT.value or [""] for _ in range(1 if BEAMS.value else NUM_SAMPLES.value)]
    prompts = tokenizer.encode_batch(texts)
    generator = run.generator()
    count = generator.room(prompts, 120) if TOKENS.value is None else TOKENS.value
    if BEAMS.value:
        beams = BeamSearch(num_beams=BEAMS.value, length_penalty=PENALTY.value, num_return=NUM_SAMPLES.value)
        found = beam_search(generator, run.params, prompts, count, beams)
        outputs = [
            ([*prompt, *h.ids], f", score {h.score:.4f}")
            for prompt, row in zip(prompts, found, strict=True)
            for h in row
        ]
    else:
        drawn = generator(run.params, prompts, count, sampling, SEED.value)
        outputs = [([*prompt, *ids], "") for prompt, ids in zip(prompts, drawn, strict=True)]
    for i, (ids, told) in enumerate(outputs):
        if len(outputs) > 1:
            print(f"{'' if i == 0 else chr(10)}--- {i + 1} of {len(outputs)}{told}")
        print(tokenizer.decode(ids))


if __name__ == "__main__":
    runtime.prepare()
    cli.run(main, __doc__)
