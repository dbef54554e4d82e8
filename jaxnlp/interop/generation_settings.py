"""The settings of `generation_config.json` with which transformers generates and jaxnlp does not: its own are options.

Source: transformers 5, `GenerationConfig._get_default_generation_params`, and the fields without a default there.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxnlp.interop.source_files import CONFIG, GENERATION, SourceFiles

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "max_length": 20,
        "min_length": 0,
        "do_sample": False,
        "num_beams": 1,
        "early_stopping": False,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "length_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "num_return_sequences": 1,
        "num_beam_groups": 1,
        "diversity_penalty": 0.0,
        "renormalize_logits": False,
        "remove_invalid_values": False,
        "token_healing": False,
        **dict.fromkeys(("max_new_tokens", "min_new_tokens", "max_time", "stop_strings", "min_p", "top_h")),
        **dict.fromkeys(("bad_words_ids", "force_words_ids", "constraints", "sequence_bias")),
        **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")),
        **dict.fromkeys(("exponential_decay_length_penalty", "guidance_scale", "watermarking_config")),
        **dict.fromkeys(("penalty_alpha", "dola_layers")),
    }
)
"""The settings that change which tokens are generated, and their values in transformers if no file sets them."""


def unused(source: SourceFiles) -> str | None:
    """A line that names the settings that are not used, as "generation_config.json: top_k=20 is not used; ...".

    None: there are none. Without the file, transformers reads them from config.json.
    """
    name = GENERATION if GENERATION in source.files else CONFIG
    fields = source.json(name)
    others = {field: fields[field] for field, default in DEFAULTS.items() if fields.get(field) not in (None, default)}
    if not others:
        return None
    listed = ", ".join(f"{field}={repr(value)[:40]}" for field, value in others.items())
    verb = "is" if len(others) == 1 else "are"
    return f"{name}: {listed} {verb} not used; pass options, as temperature, top_k, top_p, repetition_penalty"
