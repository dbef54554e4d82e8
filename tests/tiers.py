"""A pytest plugin: selects the cases of long tests that are in the fast tier; the others are marked slow.

For each test that is named here, the ids of its cases that stay fast; none where the whole test is slow. They are
chosen so that each value of each parameter is met where it could break alone, and that the fast tier stays within its
budget (docs/testing.md). CI runs the slow cases of what a change touches; a case that only `make test-all` runs is
marked `full` where the test stands.
"""

import collections

import pytest

FAST: dict[str, tuple[str, ...]] = {
    "tests/planning/test_planner.py::test_arguments_are_the_parameters_and_the_optimizer_state": (
        "ZERO1",
        "ZERO3",
        "TP",
    ),
    "tests/training/test_step.py::test_several_steps_in_one_call_equal_as_many_calls": (),
    "tests/nn/test_remat.py::test_policies_keep_less_and_less": (),
    "tests/models/test_heads.py::test_a_head_of_ones_own": (),
    "tests/planning/test_activation_memory.py::test_what_splits_the_batch_divides": (),
    "tests/experiments/test_rollouts.py::test_killed_and_resumed_has_the_same_losses": (),
    "tests/experiments/test_rollouts.py::test_an_evaluation_without_the_objectives_array_names_it_after_saving": (),
    "tests/training/test_tuned.py::test_a_run_resumes_to_the_bit_and_its_checkpoints_hold_what_was_trained": (),
    "tests/training/test_flops.py::test_only_what_is_trained_has_gradients": (),
    "tests/test_api.py::test_an_adapted_run_is_merged_and_saved": (),
    "tests/interop/test_exported_tokenizer.py::test_an_export_is_loaded_with_its_tokenizer": ("bytes, decoder",),
    "tests/training/test_meshes.py::test_eight_devices_equal_one": (
        "gpt-ZERO3 and TP_SP, 2 2 2",
        "gpt-PP data 4 stage 2, circular",
    ),
    "tests/training/test_step.py::test_eight_devices_equal_one": ("optimizer split over data",),
    "tests/peft/test_encoder_decoder.py::test_a_prompt_of_words_is_those_words_in_front_of_the_inputs": (
        "t5-True",
        "learned-True",
        "t5-False",
    ),
    "tests/models/test_bert.py::test_packed_sentences_equal_sentences_alone": (),
    "tests/experiments/test_peft_bench.py::test_a_compiled_lora_step_has_no_result_of_the_shape_of_a_kernel": (),
    "tests/interop/test_adapters.py::test_parts_of_one_matrix_of_theirs_are_written_as_one_update": ("True",),
    "tests/models/test_heads.py::test_the_head_reads_the_trunks_own_state_at_the_extract_token": (),
    "tests/inference/test_attention_maps.py::test_an_encoder_reads_its_special_tokens_and_a_pair_with_types": (),
    "tests/models/test_transformer_parity.py::test_gradients_of_the_smoothed_loss": (),
    "tests/peft/test_encoder_decoder.py::test_ptuning_and_a_prompt_within_a_template": (),
    "tests/planning/test_activation_memory.py::test_remat_keeps_the_inputs_of_blocks": (),
    "tests/models/test_gpt_parity.py::test_logits_and_gradients": ("2x32", "1x21"),
    "tests/interop/test_adapter_folders.py::test_adapters_of_some_layers_alone": ("layers_to_transform",),
    "tests/test_api.py::test_a_saved_copy_is_the_same_model": ("gpt2",),
    # The longest of all, as measured.
    "tests/planning/test_planner.py::test_a_step_that_takes_more_of_the_hosts_memory_than_there_is_does_not_fit": (),
    "tests/planning/test_dry_run.py::test_remat_lowers_the_estimate_and_the_compilers_figure": (),
    "tests/planning/test_dry_run.py::test_memory_estimate_is_near_the_compilers": ("True-full",),
    "tests/experiments/test_reinforce.py::test_it_learns_on_eight_devices_and_its_run_generates": (),
    "tests/training/test_tuned.py::test_tuned_over_a_mesh_as_on_one_device": (),
    "tests/training/test_tuned.py::test_texts_are_written_after_a_prompt_as_the_whole_pass_reads_them": (),
    "tests/experiments/test_training.py::test_a_loss_that_is_not_finite_stops_the_run_and_says_where": (),
    "tests/experiments/test_training.py::test_resuming_needs_no_config": (),
    "tests/experiments/test_generate.py::test_stop_strings_prefixes_and_streams": (),
    "tests/experiments/test_generate.py::test_log_probabilities_of_draws_and_beams": (),
    "tests/training/test_hooks.py::test_a_run_ends_when_the_best_no_longer_improves_also_when_resumed": (),
    "tests/evals/test_evaluators.py::test_a_language_model_on_a_mesh_ranks_while_it_trains": (),
    "tests/evals/test_evaluators.py::test_candidates_are_ranked_and_a_loss_has_data_of_its_own": (),
    "tests/inference/test_encoder_decoder.py::test_a_wide_beam_is_exhaustive_search": (),
    "tests/inference/test_encoder_decoder.py::test_a_row_does_not_depend_on_the_sources_beside_it_but_on_its_own": (),
    "tests/inference/test_sharded.py::test_eight_devices_equal_one": (),
    "tests/inference/test_beam.py::test_wide_enough_it_is_exhaustive_search": (),
    "tests/nn/test_remat.py::test_every_place_that_a_gradient_reads_is_kept_when_asked": ("mlp_hidden",),
    "tests/nn/test_recurrent.py::test_outputs_states_and_gradients_equal_torch": ("True-lstm",),
    "tests/inference/test_attention_maps.py::test_masks_in_a_text_are_filled_in": (),
    "tests/inference/test_attention_maps.py::test_a_decoder_begins_as_in_training_and_sentinels_have_their_names": (),
    "tests/inference/test_attention_maps.py::test_a_fine_tuned_model_shows_its_trunk": (),
    "tests/inference/test_attention_maps.py::test_a_decoder_sees_the_separator_and_what_came_before": ("window",),
    "tests/peft/test_quantised.py::test_merged_equals_live_and_is_floats": ("gpt-ia3-int8",),
    "tests/peft/test_prompts.py::test_a_cache_begun_with_the_prompt_goes_on_as_one_pass": ("scanned-method1",),
    "tests/peft/test_prompts.py::test_what_a_network_makes_is_all_that_is_left_when_tuning_is_done": (),
    "tests/peft/test_files_before_the_renames.py::test_the_tuned_model_is_what_it_was": ("dora", "prefix"),
    "tests/peft/test_files.py::test_every_method_comes_back_to_the_bit": (
        "gpt scanned-houlsby",
        "gpt scanned-lora and a norm",
        "gpt scanned-prefix of a network",
        "gpt-bitfit",
        "foreign-lora",
    ),
    "tests/models/test_gpt.py::test_remat_changes_memory_and_not_the_gradient": (),
    "tests/models/test_elmo.py::test_dropout_needs_a_key_and_logits_are_float32_in_bfloat16": (),
    "tests/models/test_encoder_decoders.py::test_cached_steps_equal_the_whole": (),
    "tests/training/test_step.py::test_every_optimizer_runs_split_over_a_mesh": (),
    "tests/training/test_flops.py::test_a_pipeline_has_its_bubble_and_what_its_schedule_computes_again": (),
    "tests/training/test_whole_keys.py::test_a_tensor_axis_wider_than_key_heads_equals_one_device": (),
    "tests/interop/test_huggingface.py::test_roberta_with_a_next_sentence_head_is_not_written": (),
    "tests/interop/test_adapters.py::test_embeddings_and_scanned_layers": (),
    "tests/experiments/test_entry_points.py::test_every_config_builds_and_dry_runs": ("configs/gpt/tiny.py",),
    "tests/test_renamed.py::test_a_run_saved_before_the_renames_resumes": ("gpt",),
    "tests/test_runtime.py::test_scratch_memory_is_kept_between_calls_unless_declined": (),
    "tests/experiments/test_data_parallel.py::test_the_bytes_moved_are_the_formulas": (),
    "tests/experiments/test_reinforce.py::test_killed_and_resumed_is_the_same_run_to_the_last_bit": (),
    "tests/experiments/test_finetuning.py::test_a_run_begins_from_another_and_says_what_it_took": (),
    "tests/experiments/test_finetuning.py::test_its_report_has_a_baseline_and_examples": (),
    "tests/experiments/test_finetuning.py::test_it_has_learnt_and_is_evaluated_as_any_run": (),
    "tests/experiments/test_finetuning.py::test_a_resumed_run_has_its_own_parameters_and_names_its_classes": (),
    "tests/experiments/test_finetuning.py::test_predict": (),
    "tests/experiments/test_finetuning.py::test_what_cannot_begin_is_one_line": (),
    "tests/experiments/test_figures.py::test_an_attention_map_from_a_run": (),
    "tests/experiments/test_figures.py::test_masked_words_from_a_run": (),
    "tests/experiments/test_generate.py::test_an_encoder_decoder_reads_the_prompt": (),
    "tests/experiments/test_interop.py::test_there_and_back_is_the_same_and_it_trains_on": (),
    "tests/experiments/test_training.py::test_a_corpus_that_changed_cannot_be_gone_on_with": (),
    "tests/experiments/test_training.py::test_a_trace_of_steps_that_did_not_run_is_reported": (),
    "tests/experiments/test_training.py::test_a_signal_ends_the_last_evaluation_and_loses_nothing": (),
    "tests/objectives/test_bilm.py::test_microbatches_and_eight_devices_give_the_step_of_one": (),
    "tests/objectives/test_finetuning.py::test_eight_devices_equal_one": (),
    "tests/training/test_transfer.py::test_a_run_begins_with_the_prompt_of_another_and_goes_on_without_it": (),
    "tests/training/test_transfer.py::test_a_source_that_does_not_fit_is_told": (),
    "tests/training/test_prompted.py::test_vectors_stand_where_the_template_has_their_places": (),
    "tests/peft/test_multi_adapter.py::test_texts_are_those_of_each_adapter_alone": (),
    "tests/peft/test_multi_adapter.py::test_rows_of_a_batch_choose_among_adapters_of_different_rank_and_scale": (
        "gpt scanned",
    ),
    "tests/peft/test_properties.py::test_scanned_layers_are_tuned_as_unrolled_ones": (),
    "tests/peft/test_quantised.py::test_scanned_layers_are_quantised_as_unrolled_ones": (),
    "tests/peft/test_quantised.py::test_other_methods_run_on_it_as_on_its_floats": (),
    "tests/peft/test_quantised.py::test_gradients_are_those_on_its_floats_and_it_stays_to_the_bit": (),
    "tests/peft/test_prompts.py::test_a_model_of_someone_elses_has_prompts_too": (),
    "tests/models/test_llama.py::test_it_generates": (),
    "tests/models/test_elmo.py::test_features_of_any_words_are_those_of_the_sentence_alone": (),
    "tests/inference/test_layout.py::test_logits_are_the_same": ("1-scanned, untied, grouped, gated",),
    "tests/inference/test_layout.py::test_the_generator_takes_parameters_as_they_are_and_new_ones_when_they_change": (),
    "tests/inference/test_t5.py::test_greedy_equals_transformers": (),
    "tests/evals/test_evaluators.py::test_a_run_is_measured_and_keeps_the_best_by_a_metric": (),
    "tests/evals/test_evaluators.py::test_the_command_evaluates_on_a_file_and_writes_predictions": (),
    "tests/test_api.py::test_generated_text_is_that_of_transformers": ("llama",),
    "tests/training/test_run_folder.py::test_a_killed_kmeans_resumes_to_the_same_bits": (),
    "tests/training/test_pipeline_step.py::test_the_loss_scale_multiplies_gradients_and_not_sums": (),
    "tests/training/test_pipeline_step.py::test_an_evaluation_over_stages_is_that_of_one_device": (),
    "tests/training/test_pipeline_step.py::test_what_cannot_be_pipelined_is_one_clear_line": (),
    "tests/inference/test_attention_maps.py::test_an_encoder_decoder_has_three_parts": (),
    "tests/planning/test_activation_memory.py::test_a_stage_keeps_what_its_schedule_has_under_way": (),
    "tests/planning/test_activation_memory.py::test_tensor_parallelism_divides_all_but_the_residual_stream": (),
    "tests/planning/test_dry_run.py::test_a_quantised_base_is_told_truly_and_no_stack_of_it_is_ever_floats": (),
    "tests/interop/test_encoder.py::test_an_adapter_of_it_equals_peft_both_ways": (),
    # Entry points: each forks, trains and loads, which takes seconds.
    "tests/experiments/test_training.py::test_a_signal_saves_and_says_how_to_go_on": ("SIGTERM",),
    "tests/experiments/test_training.py::test_killed_and_resumed_is_the_same_run_to_the_last_bit": (
        "dropout and accumulation",
    ),
    "tests/experiments/test_training.py::test_a_damaged_checkpoint_is_told_and_the_one_before_is_used": ("flipped",),
    "tests/experiments/test_training.py::test_checkpoints_kept_are_the_newest_and_the_best": (),
    "tests/experiments/test_training.py::test_a_full_disk_is_a_clear_error_and_older_checkpoints_are_intact": (),
    "tests/experiments/test_training.py::test_a_config_that_can_resume_says_what_changed": (),
    "tests/experiments/test_training.py::test_the_resolved_config_runs_again_from_its_json": (),
    "tests/experiments/test_training.py::test_a_trace_is_written_for_the_steps_asked_for": (),
    "tests/experiments/test_training.py::test_where_every_checkpoint_is_damaged_nothing_is_touched": (),
    "tests/experiments/test_training.py::test_checkpoints_are_scored_on_the_same_batches": (),
    "tests/experiments/test_training.py::test_the_printed_generate_command_works_where_the_context_is_short": (),
    "tests/experiments/test_training.py::test_a_run_with_a_kernel_of_another_platform_still_generates_here": (),
    "tests/experiments/test_entry_points.py::test_a_tokenized_corpus_trains_the_same_run": (),
    "tests/experiments/test_elmo.py::test_train_resume_evaluate_and_features": (),
    "tests/experiments/test_adapting.py::test_it_goes_on_from_a_run_with_its_ids_on_other_texts": (),
    "tests/experiments/test_interop.py::test_a_t5_comes_and_goes_and_trains_on": (),
    "tests/experiments/test_data_parallel.py::test_both_train_as_one_device": (),
    "tests/experiments/test_zero_memory.py::test_the_papers_table": (),
    "tests/experiments/test_zero_memory.py::test_each_device_holds_its_share_of_what_a_stage_splits": (),
    "tests/experiments/test_split.py::test_a_picture_of_each_table": (),
    "tests/experiments/test_tuning.py::test_each_method_of_the_config_is_one_that_can_run": ("lora", "prefix"),
    "tests/experiments/test_parallel_config.py::test_a_preset_over_the_devices_that_are_there": ("ZERO3", "TP"),
    "tests/planning/test_plan_command.py::test_the_entry_point_plans_for_the_attached_devices": (),
    "tests/training/test_tuned.py::test_an_encoder_decoder_writes_after_a_prompt_that_its_encoder_read": (),
    "tests/training/test_tuned.py::test_a_base_that_changed_or_went_and_a_method_that_changed": (),
    "tests/training/test_tuned.py::test_a_quantised_base_is_made_again_from_its_run": (),
    "tests/training/test_transfer.py::test_what_a_network_made_is_given_to_a_prompt_and_the_network_to_its_like": (),
    # Models: each configuration compiles its own programs.
    "tests/models/test_gpt.py::test_cached_steps_equal_the_whole_sequence": (
        "llama-like",
        "post-norm, sinusoidal",
        "buckets, scanned",
    ),
    "tests/models/test_gpt.py::test_packed_documents_equal_documents_alone": ("gpt2", "alibi, window", "scanned"),
    "tests/models/test_gpt.py::test_a_future_token_has_no_gradient": ("gpt2", "softcaps, qk-norm", "blocked"),
    "tests/models/test_llama.py::test_cached_steps_and_packed_documents_equal_the_plain_run": (),
    "tests/models/test_bert.py::test_variants_that_change_no_number": ("scanned",),
    "tests/models/test_bert.py::test_components_can_be_chosen": ("changes0",),
    "tests/models/test_encoder_decoders.py::test_outputs_see_all_inputs_and_no_later_output": ("t5",),
    "tests/models/test_encoder_decoders.py::test_padding_of_inputs_changes_nothing": ("rotary, gated, scanned", "t5"),
    "tests/models/test_encoder_decoders.py::test_packed_pairs_equal_pairs_alone": ("t5",),
    "tests/models/test_encoder_decoders.py::test_variants_that_change_no_number": (),
    "tests/models/test_encoder_decoders.py::test_dropout_needs_a_key_and_differs_with_it": ("t5",),
    "tests/models/test_heads.py::test_every_head_is_on_every_trunk_and_padding_changes_nothing": (
        "bert-classes",
        "bert-span",
        "gpt-choice",
        "roberta-tokens",
        "llama-classes",
        "gpt-number",
    ),
    "tests/models/test_heads_parity.py::test_logits_and_loss_equal_transformers": (
        "bert classes",
        "bert span",
        "roberta tokens",
        "gpt2 choice",
        "llama classes",
    ),
    "tests/models/test_heads_parity.py::test_gradients_equal_transformers": ("bert classes",),
    "tests/models/test_elmo.py::test_layers_and_logits_equal_torch": ("three layers, wide output",),
    "tests/models/test_gpt_parity.py::test_fifty_adamw_steps_follow_torch": (),
    # Layers.
    "tests/nn/test_ring.py::test_output_and_gradients_are_those_of_one_device": (
        "sequence-causal",
        "data-full",
        "tensor-window",
        "sequence-window of both sides",
        "data-segments",
        "tensor-segments, window",
        "sequence-padding, full",
        "data-prefix",
    ),
    "tests/nn/test_ring.py::test_dropout_is_that_of_one_device": ("tensor",),
    "tests/nn/test_ring.py::test_grouped_heads_in_pieces": ("tensor",),
    "tests/nn/test_ring.py::test_bias_and_its_gradient": ("segments-2",),
    "tests/nn/test_remat.py::test_gradients_are_the_same_under_every_policy": (),
    "tests/nn/test_masks.py::test_bias_reaches_its_gradient": (),
    "tests/nn/test_stack.py::test_layers_run_in_two_halves_equal_the_stack_dropout_included": (
        "gpt-True",
        "gpt, remat-False",
        "bert-True",
    ),
    # Foreign weights: each family builds a reference model.
    "tests/interop/test_huggingface.py::test_logits_and_every_layer_equal_transformers_and_it_reads_what_we_write": (
        "gpt2",
        "bert-masked",
        "bert",
        "mistral",
        "llama-3.1",
        "roberta",
        "t5",
        "t5-1.1",
    ),
    "tests/interop/test_huggingface.py::test_gradients_equal_transformers": ("gpt2", "qwen3"),
    "tests/interop/test_huggingface.py::test_every_kind_of_t5_is_read_as_it_was_written": (),
    "tests/interop/test_adapter_folders.py::test_patterns_of_alpha_and_kinds_of_init_mean_what_they_do_in_peft": (),
    # Tuning: each method on each model.
    "tests/peft/test_properties.py::test_identity_at_the_start_and_merged_equals_live": (
        "gpt-lora everywhere",
        "gpt-bitfit",
        "gpt scanned-dora",
        "gpt scanned-houlsby",
        "gpt scanned-ia3",
        "foreign-lora",
        "foreign-full",
        "foreign scanned-rslora",
        "foreign scanned-pfeiffer",
    ),
    "tests/peft/test_properties.py::test_an_encoder_decoder_is_tuned_in_all_its_parts": ("lora everywhere",),
    "tests/peft/test_quantised.py::test_the_derivative_keeps_codes_and_never_a_kernel_of_floats": (
        "gpt-nf4",
        "foreign scanned-int8",
    ),
    "tests/peft/test_prompts.py::test_a_prompt_of_words_is_those_words_in_front": (),
    "tests/peft/test_prompts.py::test_a_prefix_of_a_texts_own_keys_and_values_is_that_text": ("gpt", "bert"),
    "tests/peft/test_encoder_decoder.py::test_generation_after_a_prompt_is_that_of_its_words": (),
    # Generation: each search method compiles its own program.
    "tests/inference/test_beam.py::test_tokens_and_scores_equal_transformers": (
        "1-1.0-False",
        "4-0.6-True",
        "4--0.5-True",
        "7-1.0-False",
        "2-2.0-never",
    ),
    "tests/inference/test_beam.py::test_no_more_texts_are_found_than_there_are": (),
    "tests/inference/test_beam.py::test_a_narrow_beam_can_miss_the_best_and_a_wider_one_never_scores_less": (),
    "tests/inference/test_t5.py::test_tokens_and_scores_equal_transformers": ("4-2.0-True",),
    "tests/inference/test_t5.py::test_beams_with_processors_equal_transformers": (),
    "tests/inference/test_processors.py::test_beams_equal_transformers": (),
    "tests/inference/test_encoder_decoder.py::test_greedy_equals_recomputing_for_ragged_sources_and_prefixes": (),
    "tests/inference/test_decode.py::test_greedy_with_a_cache_equals_from_scratch_for_ragged_prompts": (
        "scanned rotary",
    ),
    # Steps over meshes.
    "tests/training/test_encoder_decoder_step.py::test_equal_to_one_device_and_one_batch": (),
    "tests/training/test_offload.py::test_an_update_by_parts_is_the_update": ("adamw-float32", "adafactor-None"),
    "tests/training/test_pipeline_step.py::test_executed_ticks_are_the_formula": (
        "gpipe-4",
        "1f1b-4",
        "circular-2",
    ),
    "tests/training/test_pipeline_step.py::test_memory_of_1f1b_does_not_grow_with_the_microbatches_and_gpipes_does": (),
    "tests/training/test_pipeline_step.py::test_gradients_are_reduced_over_data_once_a_step_and_not_once_a_tick": (),
    "tests/training/test_step.py::test_accumulation_over_ragged_padding_equals_the_big_batch": ("2",),
    "tests/sharding/test_constraints.py::test_pipelines_split_layers_and_vocabulary_over_stages": (
        'DP_PP_TP-{}, {"tensor"}',
    ),
    # Plans: each is compiled for eight devices.
    "tests/planning/test_planner.py::test_what_does_not_fit_says_what_is_largest_and_a_change_that_does": (),
    "tests/planning/test_planner.py::test_where_nothing_fits_more_devices_are_looked_for": (),
    "tests/planning/test_planner.py::test_a_search_ranks_what_fits_and_tells_of_each": (),
    # Objectives.
    "tests/objectives/test_finetuning.py::test_microbatches_give_the_step_of_the_whole_batch": ("classify",),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    complete = not any("::" in argument for argument in config.args)  # files, not single cases, were collected
    cases: dict[str, list[pytest.Item]] = collections.defaultdict(list)
    for item in items:
        function = item.nodeid.partition("[")[0]
        if function in FAST:
            cases[function].append(item)
    wrong = []
    for function, collected in cases.items():
        names = {item.nodeid.partition("[")[2].removesuffix("]") for item in collected}
        lost = {*FAST[function]} - names
        if lost and complete:
            wrong.append(f"{function} has no case {sorted(lost)}; it has {sorted(names)}")
        for item in collected:
            if item.nodeid.partition("[")[2].removesuffix("]") not in FAST[function]:
                item.add_marker(pytest.mark.slow)
    if wrong:
        raise pytest.UsageError("tests/tiers.py: " + "\n".join(wrong))
