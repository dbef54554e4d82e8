"""Maps old names in saved configs to the current modules, classes and fields.

A config is saved with the class of every object in it, as "module:Class". After a rename the old name is added here, so
that earlier checkpoints still load. Order of lookup: the module, then the class, then its fields.
"""

from collections.abc import Iterable

MODULES = {
    "jaxnlp.data.characters": "jaxnlp.data.text.characters",
    "jaxnlp.data.embedded_tasks": "jaxnlp.data.corpora.stdlib_tasks",
    "jaxnlp.data.from_run": "jaxnlp.data.pretrained_tokenizer",
    "jaxnlp.data.masking": "jaxnlp.data.text.masking",
    "jaxnlp.data.packing": "jaxnlp.data.text.packing",
    "jaxnlp.data.sentences": "jaxnlp.data.text.sentences",
    "jaxnlp.data.sources": "jaxnlp.data.text.sources",
    "jaxnlp.data.span_corruption": "jaxnlp.data.text.span_corruption",
    "jaxnlp.data.tasks.choice": "jaxnlp.data.tasks.multiple_choice",
    "jaxnlp.data.tasks.classification": "jaxnlp.data.tasks.sequence_classification",
    "jaxnlp.data.tasks.spans": "jaxnlp.data.tasks.span_extraction",
    "jaxnlp.data.tasks.tags": "jaxnlp.data.tasks.token_classification",
    "jaxnlp.objectives.choice": "jaxnlp.objectives.multiple_choice",
    "jaxnlp.objectives.classify": "jaxnlp.objectives.sequence_classification",
    "jaxnlp.objectives.regress": "jaxnlp.objectives.regression",
    "jaxnlp.objectives.span": "jaxnlp.objectives.span_extraction",
    "jaxnlp.objectives.tag": "jaxnlp.objectives.token_classification",
    "jaxnlp.peft.partial": "jaxnlp.peft.bitfit",
    "jaxnlp.train.experiment": "jaxnlp.training.experiment",
    "jaxnlp.train.pretrained": "jaxnlp.training.init.pretrained",
}
"""Old module -> new module, for modules that define config classes."""

CLASSES: dict[str, str] = {
    "jaxnlp.data.corpora.stdlib_tasks:EmbeddedCalls": "StdlibCalls",
    "jaxnlp.data.corpora.stdlib_tasks:EmbeddedChoice": "StdlibChoice",
    "jaxnlp.data.corpora.stdlib_tasks:EmbeddedDocstrings": "StdlibDocstrings",
    "jaxnlp.data.corpora.stdlib_tasks:EmbeddedEntailment": "StdlibEntailment",
    "jaxnlp.data.corpora.stdlib_tasks:EmbeddedSimilarity": "StdlibSimilarity",
    "jaxnlp.data.corpora.stdlib_tasks:EmbeddedSpans": "StdlibSpans",
    "jaxnlp.data.corpora.stdlib_tasks:EmbeddedTags": "StdlibTags",
    "jaxnlp.data.corpora.stdlib_tasks:EmbeddedTask": "StdlibTask",
    "jaxnlp.data.pretrained_tokenizer:FromRun": "PretrainedTokenizer",
    "jaxnlp.data.text.sources:Embedded": "PythonStdlib",
    "jaxnlp.evals.evaluator:GenerationEvaluator": "jaxnlp.evals.generations:GenerationEvaluator",
    "jaxnlp.evals.evaluator:LossEvaluator": "jaxnlp.evals.loss:LossEvaluator",
    "jaxnlp.evals.evaluator:PredictionEvaluator": "jaxnlp.evals.predictions:PredictionEvaluator",
    "jaxnlp.evals.evaluator:RankingEvaluator": "jaxnlp.evals.rankings:RankingEvaluator",
    "jaxnlp.data.tokenizer:HuggingFace": "jaxnlp.data.huggingface_tokenizer:HuggingFace",
    "jaxnlp.data.tasks.multiple_choice:Choices": "MultipleChoiceTask",
    "jaxnlp.data.tasks.sequence_classification:Classification": "SequenceClassificationTask",
    "jaxnlp.data.tasks.regression:Regression": "RegressionTask",
    "jaxnlp.data.tasks.span_extraction:Spans": "SpanExtractionTask",
    "jaxnlp.data.tasks.token_classification:Tags": "TokenClassificationTask",
    "jaxnlp.models.heads:FineTuned": "ModelWithHead",
    "jaxnlp.models.heads:MultipleChoice": "MultipleChoiceHead",
    "jaxnlp.models.heads:SequenceClassification": "SequenceClassificationHead",
    "jaxnlp.models.heads:SequenceRegression": "RegressionHead",
    "jaxnlp.models.heads:SpanExtraction": "SpanExtractionHead",
    "jaxnlp.models.heads:TokenClassification": "TokenClassificationHead",
    "jaxnlp.objectives.multiple_choice:Choice": "MultipleChoice",
    "jaxnlp.objectives.sequence_classification:Classify": "SequenceClassification",
    "jaxnlp.objectives.regression:Regress": "Regression",
    "jaxnlp.objectives.span_extraction:Span": "SpanExtraction",
    "jaxnlp.objectives.token_classification:Tag": "TokenClassification",
    "jaxnlp.peft.bitfit:Full": "jaxnlp.peft.full:Full",
    "jaxnlp.peft.method:Method": "PEFTMethod",
}
"""New module and old class name -> new class name, or "module:Class" if the class has moved to another module."""

FIELDS: dict[str, dict[str, str]] = {
    "jaxnlp.data.pipeline:DataConfig": {"examples": "task"},
    "jaxnlp.data.pretrained_tokenizer:PretrainedTokenizer": {"separator": "eos_token", "specials": "special_tokens"},
    "jaxnlp.data.tasks.text_pairs:TextPairs": {"start": "decoder_start_token"},
    "jaxnlp.data.text.span_corruption:SpanCorruption": {"start": "decoder_start_token"},
    "jaxnlp.data.tokenizer:Bytes": {"specials": "special_tokens"},
    "jaxnlp.data.huggingface_tokenizer:HuggingFace": {"separator": "eos_token"},
    "jaxnlp.data.tokenizer:SentencePiece": {"specials": "special_tokens"},
    "jaxnlp.models.bert:BertConfig": {"max_len": "max_length"},
    "jaxnlp.models.gpt:GPTConfig": {"max_len": "max_length"},
    "jaxnlp.models.heads:ModelWithHead": {"trunk": "body"},
    "jaxnlp.models.transformer:TransformerConfig": {"max_len": "max_length"},
    "jaxnlp.nn.policy:Policy": {"product_dtype": "matmul_dtype"},
    "jaxnlp.training.experiment:Experiment": {"steps": "num_steps", "tuning": "peft", "tuning_from": "init_peft_from"},
    "jaxnlp.training.init.pretrained:Pretrained": {"fresh": "missing_ok", "left_over": "unexpected_ok"},
    "jaxnlp.nn.positions:Llama3Scaling": {"original_max_len": "original_max_length"},
    "jaxnlp.peft.lora:LoRA": {
        "b_rate": "lora_plus_ratio",
        "dora": "use_dora",
        "rank_stabilized": "use_rslora",
    },
    "jaxnlp.peft.method:PEFTMethod": {"base_kept": "skip_modules", "whole": "modules_to_save"},
    "jaxnlp.sharding.mesh:MeshConfig": {"slices": "dcn"},
    "jaxnlp.sharding.pipeline:Circular": {"laps": "virtual_stages"},
    "jaxnlp.nn.positions:Yarn": {"original_max_len": "original_max_length"},
}
"""New module and new class name -> {old field: new field}, also for subclasses. A new name "" drops the field."""

EVALUATORS = {"whole_validation": "full_validation"}
"""Old name -> new name of the built-in evaluations, in `Experiment.best` and in `metrics.jsonl`."""


def current_class(name: str) -> str:
    """The current name of a class in a saved config, as "module:Class"."""
    module, _, cls = name.partition(":")
    moved = f"{MODULES.get(module, module)}:{cls}"
    name = CLASSES.get(moved, cls)
    return name if ":" in name else moved.partition(":")[0] + ":" + name


def current_fields(names: Iterable[str], fields: dict[str, object]) -> dict[str, object]:
    """The fields of a saved object under their current names. names: of its class and of its base classes."""
    renamed = {old: new for name in names for old, new in FIELDS.get(name, {}).items()}
    return {renamed.get(field, field): value for field, value in fields.items() if renamed.get(field, field)}
