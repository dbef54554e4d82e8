"""Faults of tuning methods."""

from tests.mutants.mutant import Mutant

PROPERTIES = "tests/peft/test_properties.py::test_identity_at_the_start_and_merged_equals_live"
PARITY = "tests/interop/test_adapters.py::test_logits_equal_peft_live_and_merged_and_it_reads_what_we_write"

MUTANTS = (
    Mutant(
        id="peft/lora-scale-dropped",
        file="peft/lora.py",
        old="update = self.scale * _product(leaves, x, target.num_in, policy)",
        new="update = _product(leaves, x, target.num_in, policy)",
        fault="a live LoRA is not scaled by alpha / rank",
        tests=(PROPERTIES,),
    ),
    Mutant(
        id="peft/lora-rank-stabilized",
        file="peft/lora.py",
        old="math.sqrt(self.rank) if self.use_rslora else self.rank",
        new="self.rank",
        fault="rank-stabilized LoRA is scaled by alpha / rank",
        tests=(f"{PARITY}[rslora-gpt2]",),
    ),
    Mutant(
        id="peft/dora-norm-detached",
        file="peft/lora.py",
        old="length = leaves[MAGNITUDE] / jax.lax.stop_gradient(norms(",
        new="length = leaves[MAGNITUDE] / (norms(",
        fault="DoRA's gradient goes through the norm, which the paper holds constant",
        tests=("tests/peft/test_formulas.py::test_doras_gradient_holds_the_lengths_of_the_sum_constant",),
    ),
    Mutant(
        id="peft/dora-magnitude-not-subtracted",
        file="peft/lora.py",
        old="return y + ((length - 1) * plain + length * update).astype(y.dtype)",
        new="return y + (length * plain + length * update).astype(y.dtype)",
        fault="DoRA counts the base's product twice",
        tests=(PROPERTIES,),
    ),
    Mutant(
        id="peft/lora-unmerge-adds",
        file="peft/lora.py",
        old="return {name: kernel + sign * update}",
        new="return {name: kernel + update}",
        fault="unmerging adds the update again",
        tests=("tests/peft/test_properties.py::test_unmerged_is_the_base_again",),
    ),
    Mutant(
        id="peft/ia3-bias-not-scaled",
        file="peft/ia3.py",
        old='new["bias"] = weights["bias"].astype(jnp.float32) * leaves[OUT]',
        new='new["bias"] = weights["bias"].astype(jnp.float32)',
        fault="a merged (IA)^3 leaves the bias unscaled",
        tests=(f"{PARITY}[ia3-gpt2]",),
    ),
    Mutant(
        id="peft/adapter-without-residual",
        file="peft/adapter.py",
        old='y = h + matmul(z, leaves["adapter_up"], policy)',
        new='y = matmul(z, leaves["adapter_up"], policy)',
        fault="an adapter replaces what its sublayer returns",
        tests=("tests/peft/test_formulas.py::test_an_adapter_is_a_bottleneck_added_to_what_the_sublayer_returns",),
    ),
    Mutant(
        id="peft/prefix-behind-the-mask",
        file="peft/prefix.py",
        old="dataclasses.replace(mask, num_prefix_keys=self.length)",
        new="dataclasses.replace(mask, num_prefix_keys=0)",
        fault="a prefix's keys are masked as if they were the text's",
        tests=("tests/peft/test_prompts.py::test_a_prefix_of_a_texts_own_keys_and_values_is_that_text",),
    ),
    Mutant(
        id="peft/prefix-positions",
        file="peft/prefix.py",
        old='"positions": positions + P}',
        new='"positions": positions}',
        fault="a text's positions are not counted from after the prefix",
        tests=("tests/peft/test_prompts.py::test_a_prefix_of_a_texts_own_keys_and_values_is_that_text",),
    ),
    Mutant(
        id="peft/prompt-segments",
        file="peft/prompt.py",
        old="front = jnp.max(x, axis=1, keepdims=True) if segments else jnp.zeros_like(x[:, :1])",
        new="front = jnp.zeros_like(x[:, :1])",
        fault="a prompt's places are padding",
        tests=("tests/peft/test_prompts.py::test_padding_places_and_types_go_along",),
    ),
    Mutant(
        id="peft/resident-scales-dropped",
        file="peft/multi_adapter.py",
        old="(B, [method.scale for method in methods])",
        new="(B, [1.0 for method in methods])",
        fault="resident adapters lose their scales",
        tests=(
            "tests/peft/test_multi_adapter.py::test_rows_of_a_batch_choose_among_adapters_of_different_rank_and_scale",
        ),
    ),
)
