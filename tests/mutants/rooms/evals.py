"""Faults of evaluations."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        id="evals/last-batch-alone",
        file="evals/loss.py",
        old="jax.tree.map(lambda a, b: a + b, sums, new)",
        new="jax.tree.map(lambda a, b: b, sums, new)",
        fault="an evaluation is that of its last batch",
        tests=("tests/evals/test_evals.py::test_the_loss_is_that_of_every_token_once",),
    ),
    Mutant(
        id="evals/bits-per-token",
        file="evals/loss.py",
        old="/ math.log(2) / bytes_per_token",
        new="/ math.log(2)",
        fault="bits per byte are bits per token",
        tests=("tests/evals/test_evals.py::test_the_loss_is_that_of_every_token_once",),
    ),
    Mutant(
        id="evals/separator-not-scored",
        file="evals/rankings.py",
        old="(prompt, self.separator + text)",
        new="(prompt, text)",
        fault="candidates are joined to their prompt without the separator",
        tests=("tests/evals/test_ranking.py::test_candidates_are_ranked_by_their_log_probability",),
    ),
)
