"""Faults of conversion from and to other libraries."""

from tests.mutants.mutant import Mutant

PARITY = "tests/interop/test_huggingface.py::test_logits_and_every_layer_equal_transformers_and_it_reads_what_we_write"

MUTANTS = (
    Mutant(
        id="interop/export-not-transposed",
        file="interop/tensors.py",
        old='return np.ascontiguousarray(joined.T) if self.kind == "linear" else joined',
        new='return joined.reshape(joined.T.shape) if self.kind == "linear" else joined',
        fault="exported matrices are reshaped and not transposed",
        tests=("tests/interop/test_huggingface.py::test_round_trip_is_exact_also_in_shards",),
    ),
    Mutant(
        id="interop/import-split-axis",
        file="interop/tensors.py",
        old="np.cumsum(sizes)[:-1], axis=-1)",
        new="np.cumsum(sizes)[:-1][::-1], axis=-1)[::-1]",
        fault="GPT-2's query, key and value columns are taken in reverse",
        tests=(f"{PARITY}[gpt2]",),
    ),
    Mutant(
        id="interop/gpt2-query-key-value",
        file="interop/gpt2.py",
        old='("query", "key", "value")',
        new='("query", "value", "key")',
        fault="GPT-2's keys and values are swapped",
        tests=(f"{PARITY}[gpt2]",),
    ),
    Mutant(
        id="interop/roberta-first-position",
        file="interop/bert.py",
        old='hf.get("pad_token_id", 1) + 1',
        new='hf.get("pad_token_id", 1)',
        fault="RoBERTa's positions begin at its padding row",
        tests=(f"{PARITY}[roberta]",),
    ),
    Mutant(
        id="interop/llama-rope-base",
        file="interop/llama.py",
        old='base = rope.get("rope_theta", hf.get("rope_theta", 10000.0))',
        new="base = 10000.0",
        fault="a checkpoint's rotary base is ignored",
        tests=(PARITY,),
    ),
    Mutant(
        id="interop/llama-mlp-gate",
        file="interop/llama.py",
        old='f"{hf_layer}.mlp.{name}_proj", f"{block}/mlp/{name}"',
        new="f\"{hf_layer}.mlp.{name}_proj\", f\"{block}/mlp/{({'gate': 'up', 'up': 'gate'}.get(name, name))}\"",
        fault="Llama's gate and up projections are swapped",
        tests=(f"{PARITY}[llama]", PARITY),
    ),
    Mutant(
        id="interop/lora-own-alpha",
        file="interop/lora.py",
        old="b_part = b_part.astype(np.float32) * (module_scale / (alpha / rank_root(rank)))",
        new="b_part = b_part.astype(np.float32)",
        fault="a module's own alpha is ignored",
        tests=(
            "tests/interop/test_adapter_folders.py::test_patterns_of_alpha_and_kinds_of_init_mean_what_they_do_in_peft",
        ),
        tier="slow",
    ),
    Mutant(
        id="interop/prefix-keys-and-values",
        file="interop/soft_prompts.py",
        old="names = (KEY, VALUE)\n",
        new="names = (VALUE, KEY)\n",
        fault="an imported prefix's keys and values are swapped",
        tests=("tests/interop/test_adapters.py::test_prompts_and_prefixes_equal_peft_and_it_reads_what_we_write",),
    ),
)
