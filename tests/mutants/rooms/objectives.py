"""Faults of training objectives."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        id="objectives/causal-lm-padding-counts",
        file="objectives/causal_lm.py",
        old="return total, jnp.sum(weights_BT),",
        new="return total, jnp.float32(weights_BT.size),",
        fault="padding counts in the number of tokens",
        tests=("tests/training/test_step.py::test_the_loss_is_a_mean_over_tokens_and_not_of_means",),
    ),
    Mutant(
        id="objectives/causal-lm-z-loss",
        file="objectives/causal_lm.py",
        old="jnp.sum(jnp.square(log_z_BT) * weights_BT)",
        new="jnp.sum(log_z_BT * weights_BT)",
        fault="the z-loss is not squared",
        tests=("tests/objectives/test_causal_lm.py",),
    ),
    Mutant(
        id="objectives/seq2seq-smoothing-share",
        file="objectives/seq2seq.py",
        old="(1 - smooth) * nll_BT + smooth * (log_z_BT - logits_BTV.mean(-1))",
        new="nll_BT + smooth * (log_z_BT - logits_BTV.mean(-1))",
        fault="label smoothing adds its share and takes none from the target",
        tests=("tests/objectives/test_seq2seq.py::test_smoothed_loss_equals_torch",),
    ),
    Mutant(
        id="objectives/masked-lm-weights",
        file="objectives/masked_lm.py",
        old="jnp.sum(nll_BM * weights_BM)",
        new="jnp.sum(nll_BM)",
        fault="places without a prediction count in the masked-LM loss",
        tests=("tests/objectives/test_masked_lm.py::test_the_loss_is_the_sum_of_two_means",),
    ),
    Mutant(
        id="objectives/masked-lm-pair-share",
        file="objectives/masked_lm.py",
        old='return {**batch, "pair_shares": share * batch["pair_weights"]}',
        new='return {**batch, "pair_shares": batch["pair_weights"]}',
        fault="the next-sentence loss is divided by the number of words",
        tests=("tests/objectives/test_masked_lm.py::test_the_loss_is_the_sum_of_two_means",),
    ),
    Mutant(
        id="objectives/bilm-padding",
        file="objectives/bilm.py",
        old="jnp.where(weights_BT == 0, 0.0, nll_BT * weights_BT)",
        new="jnp.where(weights_BT == 0, nll_BT, nll_BT * weights_BT)",
        fault="places that predict nothing count in ELMo's loss",
        tests=("tests/objectives/test_bilm.py::test_the_loss_is_torchs_cross_entropy_of_both_directions",),
    ),
    Mutant(
        id="objectives/span-loss-not-halved",
        file="objectives/span_extraction.py",
        old="[..., i], batch[name])[0] / 2",
        new="[..., i], batch[name])[0]",
        fault="the span loss is the sum of both cross-entropies and not their mean",
        tests=(
            "tests/objectives/test_finetuning.py::test_the_loss_of_a_span_is_over_the_places_where_an_answer_may_be",
        ),
    ),
    Mutant(
        id="objectives/span-places-not-masked",
        file="objectives/span_extraction.py",
        old="logits_BT2, -1e9)",
        new="logits_BT2, 0.0)",
        fault="the question's places share in the softmax over spans",
        tests=(
            "tests/objectives/test_finetuning.py::test_the_loss_of_a_span_is_over_the_places_where_an_answer_may_be",
        ),
    ),
    Mutant(
        id="objectives/precision-and-recall-swapped",
        file="objectives/classification_metrics.py",
        old="precision, recall = over(hit_N, predicted_N)[1], over(hit_N, true_N)[1]",
        new="recall, precision = over(hit_N, predicted_N)[1], over(hit_N, true_N)[1]",
        fault="precision and recall are swapped",
        tests=("tests/objectives/test_finetuning.py::test_scores_of_two_classes",),
    ),
    Mutant(
        id="objectives/pearson-covariance",
        file="objectives/regression.py",
        old="float((xy - x * y) / (x_spread * y_spread) ** 0.5)",
        new="float(xy / (x_spread * y_spread) ** 0.5)",
        fault="Pearson's correlation is not of deviations from the means",
        tests=("tests/objectives/test_finetuning.py::test_a_split_in_batches_has_the_scores_of_the_whole",),
    ),
    Mutant(
        id="objectives/auxiliary-lm-share",
        file="objectives/auxiliary_lm.py",
        old='self.lm_weight * share * batch["lm_weights"]',
        new='self.lm_weight * batch["lm_weights"]',
        fault="the auxiliary language-model loss is a sum over tokens and not their mean",
        tests=(
            "tests/objectives/test_finetuning.py::test_the_loss_is_the_tasks_mean_plus_lambda_times_the_mean_of_the_tokens",
        ),
    ),
    Mutant(
        id="objectives/metrics-divided-by-the-loss-weight",
        file="objectives/objective.py",
        old="return total / (count + (count == 0))",
        new="return total / (weight + (count == 0))",
        fault="a metric with a weight of its own is divided by the loss's",
        tests=("tests/objectives/test_masked_lm.py::test_the_loss_is_the_sum_of_two_means",),
    ),
)
