"""REINFORCE's feed in the supervised loop: python -m tests.experiments.rollouts --corpus=FOLDER --workdir=FOLDER."""

import dataclasses

from jaxnlp import cli, runtime

if __name__ == "__main__":
    runtime.configure_jax()

from absl import flags

import jaxnlp
from experiments import reinforce
from jaxnlp.data.text.sources import Files
from jaxnlp.inference.bound_model import make_generator

CORPUS = flags.DEFINE_string("corpus", None, "Folder of the corpus.")
EVAL_EVERY = flags.DEFINE_integer("eval_every", None, "Steps between evaluations; the default is none.")


def main() -> None:
    e = reinforce.get_experiment()
    source = Files(train=f"{CORPUS.value}/train.txt", validation=f"{CORPUS.value}/validation.txt", document="paragraph")
    data = dataclasses.replace(e.data, source=source)
    e = dataclasses.replace(e, data=data, eval_every=EVAL_EVERY.value, log_every=1, peak_flops=1e12, sample_tokens=0)

    def make_feed(setup):
        return reinforce.Rollouts(setup.program, make_generator(setup.program.bind(setup.tokenizer)))

    print(jaxnlp.train(e, reinforce.WORKDIR.value, make_feed=make_feed).report())


if __name__ == "__main__":
    cli.run(main, __doc__)
