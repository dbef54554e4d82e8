"""Faults of metrics."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        id="metrics/token-f1",
        file="metrics/question_answering.py",
        old="return 2 * num_common / (len(words) + len(answer_words))",
        new="return num_common / max(len(words), len(answer_words))",
        fault="SQuAD's F1 is the smaller of precision and recall",
        tests=("tests/metrics/test_question_answering.py::test_an_answer",),
    ),
    Mutant(
        id="metrics/articles-count",
        file="metrics/question_answering.py",
        old=r'r"\b(a|an|the)\b"',
        new=r'r"\b(a|an)\b"',
        fault="an answer with another article is no exact match",
        tests=("tests/metrics/test_question_answering.py::test_an_answer",),
    ),
    Mutant(
        id="metrics/interval-of-unpaired-samples",
        file="metrics/metric.py",
        old="[references[i] for i in indices])",
        new="[references[i] for i in sorted(indices)])",
        fault="bootstrap samples pair predictions with other records' references",
        tests=("tests/metrics/test_metrics.py::test_pairs_are_drawn_together",),
    ),
    Mutant(
        id="metrics/interval-of-one-tail",
        file="metrics/metric.py",
        old="tails = [(1 - confidence) / 2, (1 + confidence) / 2]",
        new="tails = [0.0, 1.0]",
        fault="a bootstrap interval is the range of all samples",
        tests=("tests/metrics/test_metrics.py::test_an_interval_of_a_share_is_that_of_the_normal_approximation",),
    ),
    Mutant(
        id="metrics/ties-rank-first",
        file="metrics/ranking.py",
        old="np.sum(array >= array[index])",
        new="1 + np.sum(array > array[index])",
        fault="a constant score ranks the right candidate first",
        tests=("tests/metrics/test_metrics.py::test_ties_count_against_the_right_candidate",),
    ),
    Mutant(
        id="metrics/first-reference-alone",
        file="metrics/generation.py",
        old="for k in range(max(map(len, rows)))]",
        new="for k in range(1)]",
        fault="BLEU and chrF see the first reference only",
        tests=("tests/metrics/test_metrics.py::test_generated_texts_may_have_several_references",),
    ),
)
