"""Which tests are in which tier: decided here, and in no test file.

``make slow`` runs everything. ``make test``, CI and plain ``pytest`` leave out what is
marked slow: by its own file, where only seconds or a machine are the matter, or by
`TABLE`. ``make quick`` leaves out more, see tests/quick_select.py.

The table is about what a test *adds*. A law that holds for 54 cells is tried on one
cell of each kind; an engine is tried once for each way of differentiating; a refusal
costs nothing, so all are kept. A function that the table does not name is kept with
all its rows, unless its rows are subjects (see tests/helpers/subjects.py): then with
those of `WIDE`. docs/testing.md says more.
"""

import dataclasses
import fnmatch
import functools
import os
import sys
import time
from pathlib import Path

import cases
import pytest

TESTS = Path(__file__).parent

# One subject of each kind: two classics with every option, a linear cell with complex
# numbers, a cell as users write one, and both directions. Where a law also has the
# twin that learns its initial carry, that is the one that is kept. Matrix memories and
# stacks cost most to compile; tests/cells and tests/layers have tests of their own.
WIDE = frozenset({"lstm_all", "gru", "s5", "user", "bidirectional"})
# For what hardly depends on the cell.
NARROW = frozenset({"gru", "user", "stack"})
ONE = frozenset({"gru"})
EVERY = 10_000
SUBJECTS_OF_QUICK = frozenset({"gru", "user", "s5"})


@dataclasses.dataclass(frozen=True)
class Without:
    """All rows but those with an id like one of these."""

    likes: tuple[str, ...]


# What stays in the default tier, by file and function:
#   a number   as many rows, spread over all of them (0: none, the function is slow)
#   a list     the rows whose id (in brackets after the test's name) is like one of it
#   a set      the rows of these subjects
#   a pair     a list, and then a set
#   Without    all rows but those with an id like one of its list
# Reasons stand before the rows they are for.
TABLE = {
    # ---------------------------------------------------------------- the site
    # Pages of at most some three seconds: other tutorials take ten to forty of them,
    # and guides and explanations four to nine; ``make docs`` runs them all.
    "repository/test_documentation.py": {
        "test_a_page_prints_what_it_shows": [
            "install",
            "large_data",
            "other_libraries",
            "own_data",
            "platforms",
            "resume",
            "several_devices",
            "speed",
            "thirty_seconds",
            "weights",
            "which_engine",
        ],
    },
    # These pages take from five to seventeen seconds each. Two stay that show what
    # users extend; what the others show is tried in tests/layers, nnx, cells and so on.
    "repository/test_readme.py": {
        "test_the_code_of_a_page_runs": ["engines"],
    },
    # ---------------------------------------------------------------- laws
    # Values, gradients, masks, resets, directions and finite differences: one subject
    # of each kind. Most of these share one compiled program a subject.
    "laws/test_laws_forward.py": {
        "test_unroll_is_a_python_loop_in_float32": ["gru*"],
        # the loop in Python is compared forwards on seven subjects, backwards on two
        "test_reverse_is_a_python_loop_backwards": ONE,
        "test_reverse_is_forward_on_the_flipped_sequence": ONE | {"bidirectional"},
        "test_vmap_and_a_loop_over_the_batch_are_the_batch": ONE,
        # these compile programs of their own and hardly depend on the cell
        "test_a_sequence_may_be_run_in_two_parts_wherever_it_is_cut": ONE,
        "test_no_steps_give_back_the_carry": ONE | {"stack"},
        "test_gradients_cross_the_cut": 0,
        "test_mask_and_resets_may_be_left_out": ONE,
        "test_the_carry_may_be_left_out": ONE,
        "test_one_step_is_the_streaming_call": ONE,
        "test_any_batch_axes": ONE,
        "test_compiled_is_eager": 0,
        "test_one_unit": 0,
        # two engines; tests/engines/test_engines.py tries them all
        "test_engine": ["Scan(*hoist=False*-user", "Checkpoint(*'auto'*-user"],
        "test_checkpoints_backwards_and_in_windows": 0,
        "test_bidirectional_is_forward_beside_flipped_backward_for_every_length": [
            "concat"
        ],
    },
    "laws/test_laws_gradients.py": {
        "test_forward_mode_is_reverse_mode": ONE | {"s5"},
        "test_the_gradient_of_the_first_carry_is_a_product_of_jacobians": ONE,
        "test_second_order": ONE,
        "test_rematerialising_changes_nothing": 0,
        "test_per_example_gradients": ONE,
        "test_an_ensemble_of_parameters": 0,
        "test_vmap_inside_vmap": ONE,
    },
    "laws/test_laws_masks.py": {
        "test_padded_is_cut_short": (
            ["*-3"],
            ONE,
        ),  # a length of 0 is in core/test_empty.py
        "test_a_hole_in_the_mask_holds_the_carry": ONE | {"bidirectional"},
        # where a reset falls matters less than that there is one
        "test_nothing_crosses_a_reset": (["*-2"], NARROW | {"bidirectional"}),
        "test_packing_two_sequences_with_a_reset_is_running_them_apart": ONE,
        "test_a_reset_before_the_first_step_is_no_carry_at_all": ["gru*"],
    },
    "laws/test_laws_tbptt.py": {
        "test_the_gradient_is_the_sum_over_all_lags": ["gru"],
        # k1 and k2 of every kind on the cheapest cell are 15 rows; one stands for them
        "test_tbptt_is_the_sum_over_its_lags": ["gru-pair20"],
        "test_beyond_the_horizon_the_gradient_is_zero": ["2-3"],
        "test_pieces_are_one_long_sequence": 0,
        "test_truncated_unroll_is_a_loop_with_gradients_stopped_where_windows_begin": [
            "gru_learned-backwards"
        ],
        "test_windows_of_any_length": 0,
        "test_a_window_of_the_whole_sequence_cuts_nothing": 0,
        "test_truncated_unroll_draws_what_unroll_draws": 0,
        "test_gradients_have_the_dtypes_of_their_parameters": 0,
        # consequences of the sums over lags, with updates on top
        "test_slow_updates_add_up_to_the_gradient": 0,
        "test_a_rate_of_zero_changes_nothing_and_k1_and_k2_do_not_change_the_loss": 0,
        "test_the_bias_falls_with_k2_and_stays_below_its_bound": 0,
        "test_pieces_shorter_than_a_window": 0,
        "test_leaving_out_mask_and_resets": 0,
        "test_streams_do_not_touch_each_other": 0,
    },
    "laws/test_laws_noise.py": {
        "test_every_engine_draws_the_same": ["zoneout"],
        "test_keys_can_be_mapped": ["recurrent_dropout"],
        "test_state_noise_is_normal_and_enters_h_alone": 1,
        "test_a_linear_cell_with_noise_is_linear": 0,
        "test_a_key_is_demanded_and_decides_everything": 1,
        "test_inference_keeps_parameters_and_carry": 1,
        "test_a_rate_of_zero_is_no_noise": 1,
        "test_recurrent_dropout_leaves_what_a_gru_keeps": 0,
        "test_zoneout_keeps_its_share_of_old_values": 0,
        "test_recurrent_dropout_has_one_mask_for_all_steps": ["lstm"],
    },
    # What goes to JSON and back costs nothing, and each subject has fields of its own.
    # Trees and a context: two plans of the backward pass; the other engines share the
    # code that flattens them.
    "interop/test_golden.py": {
        "test_values_and_gradients_match_haiku": ["gru-float64", "lstm-float64"],
        "test_values_and_gradients_match_torch": [
            "gru-float64",
            "lstm-float64",
            "lstm_two_layers_bidirectional-float64",
            "lstm_projected-float64",
        ],
        "test_values_and_gradients_match_keras": ["gru", "gru_reset_before", "lstm"],
    },
    "core/test_context.py": {
        "test_attention_over_a_memory_is_the_loop": ["None"],
        "test_linear_cells_take_a_context": 0,
        "test_explain_shows_a_cell_with_context": 0,
        "test_vmap_maps_the_context": 0,
        "test_beam_search_streams_over_a_memory": 0,
        "test_noise_and_truncation_reach_a_cell_with_context": 0,
        "test_a_linear_cell_with_context_and_noise_is_linear": 0,
        "test_streaming_stacks_and_context_cells_are_unroll": 0,
        "test_tbptt_hands_the_context_to_every_window": 0,
    },
    "core/test_inputs.py": {
        "test_engines_are_lax_scan_over_trees_and_pictures": ["None-tree"],
        "test_layers_take_what_their_first_part_takes": 0,
        "test_streaming_with_resets_is_unroll": ["tree"],
        "test_tbptt_takes_trees": 0,
        "test_truncation_cuts_trees": 0,
        "test_diagnostics_take_trees": 0,
        "test_padding_of_random_keys_is_replaced_like_any_other": 0,
        "test_padding_of_any_dtype_has_no_effect": 1,
    },
    # Laws for users' cells: each broken cell is named; the library's own cells keep the
    # same laws in tests/laws.
    "testing/test_check_cell.py": {
        "test_some_of_the_library_pass": 1,
        "test_all_of_the_library_pass": 0,
        "test_a_broken_cell_is_named": [
            "LooksBack",
            "OutputFromOutside",
            "NoBatchAxes",
            "Mutable",
            "Drifts",
        ],
    },
    "tasks/test_cell_comparison.py": {
        "test_cells_side_by_side": 0,
        "test_a_score_is_that_of_as_many_plain_updates": 0,
        "test_costs_are_those_of_the_compiled_program": 0,
    },
    # One of each kind; the others use the same contract.
    # What compiles is tried on two; the others are in the slow tier.
    "cells/test_new_cells.py": {
        "test_explain_shows_it": 0,
        "test_nnx_runs_it": 0,
        "test_half_precision_keeps_the_state_in_float32": EVERY,
        "test_what_cannot_hold_it_says_so": EVERY,
    },
    "cells/test_delta_cells.py": {
        "test_values_and_gradients_are_those_in_numpy": ["delta_product", "kda_safe"],
        "test_a_safe_gate_never_forgets_all": ["GDN2"],
        "test_without_erasing_it_is_linear_attention_with_decays": ["KDA"],
    },
    # matrix/test_state_space.py and the laws try the same, at a fourth of the cost
    "cells/test_mamba.py": {
        "test_check_cell": 0,
        "test_the_published_beginning": 0,
    },
    "cells/test_mgu.py": {"test_chrono_biases_keep_for_their_time": 0},
    "gallery/test_deep_stacks.py": {
        "test_a_deep_stack_with_skips_norms_and_ties": 0,
        "test_a_gated_layer_of_ones_own": 0,
    },
    "gallery/test_gated_units.py": {
        "test_janet": 0,
        "test_mgu": 0,
    },
    "gallery/test_time_scales.py": {
        "test_clockwork": 0,
        "test_phased_lstm": 0,
        "test_cornn": 0,
        "test_lem": 0,
        "test_ltc_and_cfc_with_irregular_steps": 0,
    },
    "gallery/test_memories.py": {
        "test_fast_weights": 0,
        "test_ntm": 0,
        "test_gated_deltanet": 0,
        "test_selective_ssm_in_its_block": 0,
        "test_tokens_and_features_embedded_in_the_cell": 0,
    },
    "gallery/test_methods.py": {
        "test_a_hypernetwork_makes_the_weights_of_every_sequence": 0,
        "test_maml_differentiates_through_an_update": 0,
        "test_an_ensemble_is_a_vmap_over_parameters": 0,
        "test_parameter_lags_and_lyapunov_exponents_of_a_cell_of_ones_own": 0,
        "test_a_stream_by_tbptt_killed_and_resumed": 0,
        "test_recurrent_ppo": 0,
        "test_attention_over_a_memory": 0,
    },
    "tasks/test_squares.py": {
        "test_a_run_loads_and_evaluates": 0,
        "test_stacked_pictures_hold_their_batch_axes": 0,
        "test_the_baseline_shows_the_last_frame": 0,
    },
    "core/test_config.py": {"test_subjects_come_back_equal": EVERY},
    # --------------------------------------------------------------- cells
    # The equations in numpy are kept for every cell; the rest for one of each kind.
    "cells/test_cells.py": {
        "test_step_is_the_equations_in_numpy": EVERY,
        "test_equal_cells_are_equal_and_hash_equal": EVERY,
        "test_project_step_and_output_take_any_leading_axes": ONE,
        "test_half_precision_keeps_its_dtypes": ONE,
        "test_init_is_a_function_of_its_key": ["lstm_all"],
        "test_a_linear_cell_has_a_closed_form": 0,
    },
    "cells/test_masked_steps.py": {
        "test_padding_is_as_none": ["output-default-True"],
        "test_padding_is_as_none_for_prefixes": 0,
        "test_padding_by_other_doors": ["stack-truncated by window"],
        "test_a_batch_without_a_valid_step": ["stack"],
        "test_what_is_filled_in": 2,
        "test_padding_with_noise": 0,
        "test_padding_under_diagnostics": 0,
        "test_a_sharded_batch_is_not_gathered": 0,
        "test_padding_in_a_layer_of_ones_own": 0,
        "test_a_learned_state_for_each_row_goes_with_a_mask": 0,
        "test_padding_is_as_none_in_a_stack": 0,
        "test_a_mapped_axis_is_one_of_the_batch": 0,
        "test_padding_both_ways": 0,
    },
    # Each compiles a program or more; one form of each cell.
    "cells/test_decay_cells.py": {
        "test_it_is_its_equations": ["gla", "rwkv6", "mamba3"],
        "test_streaming_explain_and_gates": ["rwkv6"],
        "test_half_precision_keeps_the_state_in_float32": ["mamba2", "mamba3", "rwkv6"],
        "test_gla_with_equal_decays_in_a_head_has_one_decay_a_head": 0,
        "test_forget_gates_that_round_to_zero_have_gradients": ["True"],
        "test_positions_hold_where_masked_and_begin_again_at_a_reset": 0,
        "test_kernels_begin_small": ["GLA", "HGRN2"],
    },
    "cells/test_mlstm_chunks.py": {
        "test_chunks_are_the_steps": ["learned-7-True"],
        "test_without_mask_or_resets": 0,
        "test_gates_far_apart": 0,
        "test_what_is_not_finite_spoils_later_steps_alone_and_no_reset_lets_it_through": 0,  # noqa: E501,
        "test_the_default_is_chunks_unless_all_carries_are_asked_for": 0,
        "test_float32": 0,
        "test_modes_and_half_precision": 0,
        "test_sizes_that_are_symbols_are_left_to_scan": 0,
    },
    "cells/test_rwkv7.py": {
        "test_it_is_the_published_step": ["engine1-alone"],
        "test_showing_values_changes_no_output": 0,
    },
    "cells/test_mlstm_mixer.py": {
        "test_it_is_the_published_step": ["engine1"],
        "test_gates_and_first_parameters": 0,
    },
    # Two compiled programs a row. One of each form of the terms, with a learned state.
    # Either loop, with a learned state and a convolution.
    "matrix/test_state_space.py": {
        "test_chunks_are_steps": [
            "mr-backwards-steps-mamba_learned",
            "mr-backwards-prefixes-mamba_learned",
        ],
        "test_a_nan_reaches_later_steps_alone_and_crosses_no_reset": ["prefixes"],
        "test_a_nan_that_no_reset_follows_is_in_the_last_state": 0,
        "test_a_first_state_that_is_not_finite_stays_before_the_first_reset": 0,
        "test_a_nan_in_a_masked_step_is_as_nothing": 0,
        "test_forward_mode_and_second_derivatives": 0,
        "test_memory_of_the_gradient_has_one_state_a_chunk": 0,
    },
    "matrix/test_side_by_side.py": {
        "test_blocks_are_steps": ["learned-head_delta", "zero-channel"],
        "test_a_platform_compiles_its_own_plan": ["cpu", "cuda"],
        "test_a_batch_of_no_examples": ["mamba3", "products"],
        "test_explain_says_which_chunk_a_platform_has": 0,
    },
    "matrix/test_chunks.py": {
        "test_chunks_are_steps": [
            "backwards-learned-kda",
            "backwards-learned-products",
            "backwards-learned-rwkv6",
        ],
        "test_strong_decays": ["1e4-channel_delta"],
        "test_keys_that_resemble_each_other": ["delta"],
        "test_a_nan_reaches_later_steps_alone_and_crosses_no_reset": ["channel_delta"],
        "test_float32_adds_little_to_the_rounding_of_the_steps": 0,
        "test_the_transition_is_the_jacobian_of_the_state": ["head_delta", "products"],
    },
    "cells/test_convolutional.py": {
        "test_a_convolution_is_a_sum_over_places": ["2-*"],
        "test_in_layers_and_streams": 0,
        "test_pictures_of_any_rank_over_time": ["ConvLSTM-2", "ConvGRU-2"],
        "test_mixed_precision_keeps_its_sums_in_float32": 0,
    },
    "cells/test_liquid.py": {
        "test_mixed_precision_keeps_the_state_in_float32": 1,
        "test_in_a_stack_and_in_both_directions": 0,
        "test_ragged_batches_resets_and_streams": ["no_gate"],
        "test_regular_times_are_irregular_ones_of_one": 0,
        "test_irregular_times_are_those_in_numpy": ["ltc", "no_gate"],
        "test_the_solver_converges_to_the_equation": 0,
    },
    "cells/test_orthogonal.py": {
        "test_the_matrix_is_built_once": 0,
        "test_eigenvalues_at_init": 1,
        "test_mixed_precision_keeps_the_matrix_in_float32": 0,
        "test_it_stays_orthogonal_in_training": 0,
    },
    "cells/test_modern_cells.py": {
        "test_the_stabilised_slstm_is_the_plain_one": 0,
        "test_gates_that_overflow": ["SLSTM-exponential"],
        "test_an_mlstm_does_not_depend_on_the_scale_of_its_carry": 0,
        "test_through_nnx_both_directions_and_truncation": 0,
        "test_units_see_no_state_but_their_own": 0,
        "test_legs": 1,
        "test_memory_of_chunks_does_not_grow_with_time": 0,
        "test_chunks_through_layers_and_nnx": 0,
        "test_linear_cells_by_name_stand_in_blocks": 0,
        "test_an_mlstm_recalls_what_was_stored": 0,
        "test_published_beginnings": 0,
        "test_heads_do_not_see_each_other": 0,
        "test_holding_is_exact_near_zero": 0,
        "test_keys_of_zero_change_no_output": 0,
        "test_gates_of_an_slstm_are_shares": 0,
        "test_s5_begins_as_published": 1,
        "test_an_empty_slstm_takes_in_the_smallest_input": 0,
    },
    # ---------------------------------------------------------------- core
    # Refusals: all. Nothing to run: one cell of each kind and engine.
    # All forms under the default engine, and two under each other one.
    "core/test_convolution.py": {
        "test_a_step_may_convolve_in_any_layout": [
            "default-*",
            "*-channels_first",
            "chunks-batch_last",
        ],
        "test_derivatives_of_other_modes": ["batch_last"],
        "test_a_kernel_that_is_the_carry": ["default", "chunks"],
        "test_sums_over_steps_are_one_convolution": ["*-signals", "*-channels_first"],
    },
    "core/test_empty.py": {
        "test_nothing_to_run": 2,
        "test_the_layer_for_flax": 1,
        "test_streaming": 1,
    },
    "core/test_export.py": {
        "test_an_unroll_with_its_carry": ["lstm", "bidirectional"],
    },
    "core/test_initializers.py": {
        "test_recurrent_kernels_are_orthogonal_per_gate_block": 2,
        "test_torch_uniform": 1,
        "test_equal_by_value_and_in_every_dtype": 3,
        "test_orthogonal_is_uniform": 0,
    },
    "core/test_pickling.py": {"test_comes_back_equal": EVERY},
    "core/test_scalars.py": {
        "test_beams": 1,
        "test_lengths_and_symbols": 1,
        "test_temperatures": 1,
    },
    "core/test_words.py": {
        "test_a_part_without_batch_axes_cannot_be_held_by_rows": [
            "*-mask",
            "scalar-resets",
        ],
        "test_zoneout_lets_integers_and_keys_go_on": ["counter-rate1"],
        "test_numbers_have_gradients_and_diagnostics": 0,
    },
    # ------------------------------------------------------------- engines
    # Every law once; what the others compile is the same loop with another step.
    "engines/test_across.py": {"test_one_device_is_the_unsplit_run": ["retnet"]},
    "engines/test_newton.py": {
        "test_newton_is_the_python_loop": ["gru"],
        "test_every_option_is_the_python_loop": 0,
        "test_lengths_batches_and_truncation": 0,
        "test_the_structure_is_found": ["lstm", "diagonal_lstm", "slstm", "user"],
        "test_units_that_see_each_other_have_a_block_in_common": ["heads", "stacked"],
        "test_after_i_iterations_the_first_i_states_are_exact": ["wrong"],
        "test_a_wrong_jacobian_never_gives_other_values": 0,
        "test_equal_engines_compile_once": 0,
        "test_iterations_grow_near_the_edge_of_chaos_and_chunks_bound_them": 0,
        "test_a_linear_loop_takes_one_iteration": ["lstm"],
        "test_a_derivative_that_is_not_that_of_the_values": 0,
        "test_a_derivative_for_reverse_mode_only": ["linear"],
        "test_the_last_iteration_that_is_allowed_counts": 0,
        "test_products_that_overflow": 0,
        "test_every_mode_of_differentiation": 0,
        "test_the_gradient_is_that_of_the_solution": 0,
        "test_a_scaled_gradient": 0,
        "test_float32_is_as_near_to_float64_as_scan_is": 0,
    },
    "engines/test_block_solve.py": {
        "test_solutions_are_the_loop": ["23-*-False", "26-*-True"],
        "test_prefixes_are_the_loop": ["True"],
        "test_products_are_in_full_precision": ["False"],
    },
    # Three ways of marking the operands of each operation; each takes a second.
    "engines/test_dependence.py": {"test_labels_are_never_wrong": ["*-all"]},
    "engines/test_unit_blocks.py": {
        "test_blocks_are_the_whole_jacobian_where_units_are_alone": ["diagonal_lstm"],
        "test_blocks_are_on_the_diagonal_where_units_share_a_matmul": ["lstm"],
    },
    "diagnostics/test_newton_report.py": {
        "test_what_does_not_converge_is_said": 0,
        "test_a_positive_exponent_is_said": 0,
        "test_layers_have_a_report_each_and_masks_and_resets_are_theirs": 0,
        "test_the_amplification_of_a_linear_cell": 0,
    },
    "engines/test_checkify.py": {
        "test_forwards_and_backwards": [
            "*carry-default",
        ],
        "test_nothing_is_found_where_nothing_is_wrong": 0,
        "test_products_over_time_are_looked_into": 0,
        "test_mapped_forward_mode_and_twice": 0,
        "test_debug_nans": 0,
    },
    "engines/test_cudnn.py": {
        "test_weights_are_read_as_jax_reads_them_and_come_back": 0,
        "test_it_runs_as_scan_does": ["learned-holes-False"],
        "test_a_network_is_one_call": 0,
        "test_vmap_joins_the_batch": 0,
        "test_precision_is_handed_on": EVERY,
        # each compiles four unrolls and checks what the run above stands on
        "test_any_batch_axes": 0,
        "test_padding_of_nan_and_a_carry_of_nan_without_steps": 0,
        "test_windows_cut_gradients": 0,
        "test_remat_and_loops": 0,
        "test_what_is_no_network_is_a_call_each": 0,
        "test_modes_that_it_has_not": 0,
        "test_memory_that_jax_cannot_count": 0,
    },
    # A pytest of its own with four devices: what it collects goes by this table, too.
    "engines/test_data_parallel.py": {
        "check_one_all_reduce_of_the_gradients": [
            "lstm-checkpoint--False",
            "mamba-chunks--False",
            "user-default--False",
        ],
        "check_nothing_is_said_forwards": ["lstm"],
        "check_the_numbers_of_one_device": ["gru_learned-checkpoint"],
        # a sum over the devices in the whole of the carry, tracked by shard_map
        "check_sums_in_the_step": ["True-True--None"],
        "check_weight_gradients_are_summed_once_inside_shard_map": ["lstm"],
        "check_an_explicit_mesh": ["gru_learned"],
        "check_batches_that_devices_do_not_divide": 1,
        "check_a_sequence_long_enough_for_chunks": 0,
        "check_two_batch_axes_and_an_ensemble": 0,
        "check_a_kernel_is_not_split": 1,
        "check_what_else_there_is_on_an_explicit_mesh": 0,
        "test_one_device_keeps_products_of_two_axes": 0,
        "test_mapped_products_have_the_numbers_of_a_loop": ["kernel", "both"],
    },
    # each transformation and each kind of cell, under engines of both kinds, and a
    # refusal; tests/engines/test_engines.py tries what else an engine can be asked
    "engines/test_engine_matrix.py": {
        "test_an_engine_is_the_python_loop": [
            "user-user-jvp",
            "user-gru_learned-vjp",
            "checkpoint-gru_learned-vmap",
            "associative_chunk-min_gru-jvp",
            "associative-user-values",
            "newton-user-values",
        ],
    },
    "engines/test_sequential_loop.py": {
        # one way through chunks, one through all of T; forwards and backwards
        "test_rows_in_parts_are_the_python_loop": ["gru_learned-*"],
        "test_kernels_a_step_on_a_described_h100": ["GRU"],
    },
    "engines/test_engines.py": {
        # every engine once, with a chunk that is left over
        "test_engines_are_the_python_loop": [
            "gru_learned-chunk_3",
            "gru_learned-carries_3",
            "gru_learned-checkpoint_2",
            "user-default",
            "user-in_loop",
            "user-unrolled",
            "user-jax",
        ],
        "test_lengths_and_truncation": 0,
        "test_float32_gradients": 0,
        # another cell's memory is measured below it, several devices in their own file
        "test_memory_of_a_gradient": 0,
        "test_inside_shard_map": 0,
        "test_bfloat16_weight_gradients_add_up_in_float32": 0,
        # every engine in every transformation that users name; the rest on one engine
        "test_every_mode_of_differentiation": [
            "checkpoint_2-jvp",
            "chunk_3-vmap of grad",
            "carries_3-reverse over reverse",
        ],
        "test_no_weight_gradient_a_step": ONE,
        "test_odd_steps": [
            "checkpoint_2-_loop",
        ],
        "test_every_subject_under_every_kind_of_residuals": 0,
        "test_steps_left_to_jax": 1,
    },
    "engines/test_fused.py": {
        "test_a_kernel_is_the_python_loop": ["gru_learned", "s5"],
        "test_any_size": 0,
        "test_batch_axes_and_short_sequences": 1,
        "test_modes_of_differentiation": ["jvp"],
        "test_no_kernel_adds_to_the_rounding": 0,
        "test_truncation": 0,
        "test_lowers_for_tpus": 3,
        "test_tiles_and_blocks_of_time": 0,
        "test_a_cell_of_ones_own": 0,
        "test_the_default_table": 0,
        "test_a_gradient_scale_and_flags_that_are_not_flags": 0,
    },
    "engines/test_fused_cells.py": {
        "test_a_loss_of_the_last_carry_alone": 1,
        "test_carries_and_inputs_of_any_kind": 1,
        "test_complex_numbers": 0,
        "test_a_carry_without_heads": 0,
        "test_ensembles": 0,
        "test_precisions_by_any_name": 2,
        "test_they_lower": 3,
    },
    "engines/test_fused_gpu.py": {
        "test_a_kernel_is_the_loop": 0,
        "test_default_precision_is_closer_than_tf32": 0,
        "test_bfloat16_adds_nothing_to_its_rounding": 0,
        "test_lowers_for_gpus": ["gru*-float32"],
        "test_the_largest_that_fits_and_the_next": 0,
    },
    "engines/test_linear.py": {
        # backwards without a reset, and forwards with one; every run in each
        "test_every_run_is_the_python_loop_at_any_length": ["min_gru-64"],
        "test_resets_anywhere_and_masks_with_holes": 0,
        "test_float32": 0,
        "test_truncation": 0,
        "test_modes_of_differentiation": ["lru-jvp"],
        "test_nan_in_an_input_does_not_cross_a_reset": 1,
        "test_memory": 0,
        "test_second_derivatives_where_a_factor_is_zero": 0,
        "test_an_rg_lru_with_fixed_gates_is_a_real_lru": 0,
        "test_bfloat16_parameters_accumulate_in_float32": 0,
        "test_nothing_crosses_a_factor_of_zero": ["True"],
    },
    "engines/test_plans.py": {
        "test_gradients_are_those_of_lax_scan": 1,
        "test_memory_is_that_of_lax_scan": [
            "cayley",
            "gated_delta",
            "ltc",
            "ring_buffer",
        ],
        "test_forward_mode_of_a_step_without_reverse_mode": 1,
        "test_tangents_that_nobody_reads_ask_for_no_forward_mode": 0,
        "test_a_linear_cell_without_reverse_mode": 0,
        "test_gradients_without_jit": 0,
        "test_a_part_of_the_carry_that_nothing_moves_asks_for_no_derivative": 0,
    },
    "engines/test_sums.py": {
        "test_weight_gradients_that_no_cotangent_enters": [
            "a product-batch",
            "behind-one",
        ],
        "test_sums_in_half_precision_stay_in_range": 1,
    },
    # --------------------------------------- truncation, diagnostics, layers, nnx
    "truncation/test_truncation.py": {
        "test_artbp_is_unbiased": ["elman_learned-mask*-heavy_tail"],
        "test_the_cotangent_of_the_entering_carry_is_scaled": ["user-backwards"],
        "test_a_scale_of_ones_is_backpropagation": 1,
        "test_cuts_at_window_ends_are_windows": ["2-stack"],
        "test_every_engine_scales_alike": 0,
        "test_vmap_is_the_batch": 0,
        "test_derivatives_of_any_kind_and_order": 0,
        "test_gradients_keep_their_dtypes": 0,
        "test_every_pattern_comes_as_often_as_it_should": 1,
        "test_tbptt_with_artbp_is_unbiased_where_a_window_spans_the_sequence": 0,
        "test_the_bias_is_that_of_the_lag_sums": 0,
        "test_a_planted_decay_gives_the_length_of_the_formula": 3,
        "test_tbptt_with_artbp_goes_through_updates_pieces_and_noise": 0,
        "test_tbptt_draws_cuts_for_every_window_and_every_key": 0,
        "test_artbp_is_unbiased_backwards_in_time": 0,
        "test_the_bound_holds_on_a_contracting_net": 0,
        "test_the_bias_of_windows": 0,
        "test_the_bias_of_a_batch_and_inside_jit": 0,
        "test_noise_is_fitted_inside_the_range_only": 0,
        "test_smaller_errors_take_more_lags": 0,
        "test_of_truncated_unroll": Without(("how0*",)),
    },
    # Each row compiles a gradient of its own. A dense cell with a learned first carry,
    # a complex one and one of two parts stand for the others.
    "online/test_windows.py": {
        "test_rtrl_is_backpropagation_at_every_prefix": ["elman_learned-3"],
        "test_any_batch_axes_with_and_without_flags": 0,
        "test_a_stream_that_has_not_begun_stays_fresh": 0,
        "test_updates_are_windows_one_after_another": 0,
        "test_every_stream_draws_random_numbers_of_its_own": 0,
        "test_half_precision_keeps_its_dtypes": 0,
        "test_uoro_in_one_window_is_backpropagation": 0,
        "test_uoro_over_all_signs_is_backpropagation": 0,
    },
    "online/test_traces.py": {
        "test_traces_are_backpropagation_where_no_unit_sees_another": [
            "rtu",
            "diagonal_lstm_learned",
        ],
        "test_traces_are_the_masked_influence_where_units_see_each_other": [
            "gru_learned-eprop",
        ],
        "test_the_last_layer_of_a_stack_is_exact_and_lower_ones_are_not": 0,
        "test_without_its_traces_the_gradient_is_another": 0,
        "test_a_step_is_the_layers_own_step": 0,
        "test_dropped_noise_and_keys": 0,
        "test_forward_mode_is_reverse_mode": 0,
        "test_an_agent_of_a_hundred_thousand_steps_stays_finite": 0,
        "test_traces_overflow_where_backpropagation_does": 0,
    },
    "diagnostics/test_online_error.py": {
        "test_the_errors_of_windows_are_those_of_their_gradients": 0,
    },
    "tasks/test_online_gradients.py": {
        "test_exact_methods_are_backpropagation": ["masked-rtrl"],
        "test_every_task_that_makes_its_data_takes_every_method_or_says_why": [
            "mqar",
            "squares",
        ],
        "test_uoro_has_the_loss_of_the_model_and_draws_by_its_key": 0,
        "test_recall_on_the_command_line": 0,
        "test_every_method_trains_on_the_command_line": 0,
    },
    "diagnostics/test_diagnostics.py": {
        "test_lags_are_norms_of_explicit_jacobian_products": ONE,
        "test_what_a_layer_shows_is_a_function_of_its_carries": ONE | {"mlstm"},
        "test_parameter_lags_are_the_terms_of_the_gradient": 0,
        "test_ragged_sequences_count_from_their_own_last_step": 0,
        "test_at_and_lags_choose_the_loss_and_how_far_to_look": 0,
        "test_where_no_float_underflows_the_log_domain_is_the_linear_one": 0,
        "test_every_engine_gives_the_same_lags": 0,
        "test_a_gradient_map_holds_the_lags_of_every_loss": 0,
        "test_jacobians_products_and_singular_values": ["gru"],
        "test_they_sum_to_the_mean_logarithm_of_the_determinant": ["gru"],
        "test_the_instruments_have_derivatives_themselves": 0,
        "test_pictures": 0,
        "test_an_lstms_state_is_h_and_c": 0,
        "test_nothing_depends_on_the_stride_the_pieces_or_the_batch": 0,
        "test_they_do_not_depend_on_the_order_of_units_or_on_the_basis": 0,
        "test_a_planted_rate_lies_in_its_interval": 0,
        "test_of_stacks_and_of_units_without_gates": 0,
        "test_what_a_truncation_leaves_out_goes_on_where_floats_end": 0,
        "test_vanishing_is_what_the_leading_exponent_says": 0,
        "test_the_log_domain_goes_on_where_floats_end": 0,
        "test_chrono_keeps_for_as_long_as_it_says": 0,
        "test_vmap_over_sequences_equals_the_batch": 0,
    },
    # Each search compiles its own program. The search of a stack stays in
    # test_linearization.py, where its points are linearized, too.
    "diagnostics/test_fixed_points.py": {
        "test_a_linear_cell_in_closed_form": 1,
        "test_a_complex_state_in_closed_form": 0,
        "test_the_whole_carry_of_a_stack_stands_still": 0,
        "test_an_optimizer_finds_what_gauss_newton_finds": 0,
        "test_float32_in_float32_out": 0,
        "test_states_are_drawn_from_valid_steps": 0,
    },
    "diagnostics/test_linearization.py": {
        "test_a_line_attractor_needs_its_neighbors": 0,
        "test_the_error_of_a_network_is_of_second_order": 0,
        "test_an_attractor_a_repeller_and_what_moves": 0,
        "test_a_stack_against_explicit_jacobians": 0,
    },
    "diagnostics/test_projection.py": {
        "test_pictures_are_drawn": 0,
    },
    "diagnostics/test_diagnostics_marks.py": {
        "test_every_instrument_takes_bfloat16": 0,
        "test_ragged_sequences_that_end_inside_the_range_are_left_out": 0,
        "test_a_sequence_without_a_step_adds_nothing_to_the_loss": 0,
        "test_what_the_output_takes_from_the_parameters_is_in_the_first_term": 0,
        "test_float64_where_one_scale_is_enough_agrees": 0,
        "test_the_exponents_are_those_of_the_real_matrix": 0,
        "test_of_a_cell_with_noise_they_are_those_of_its_expectation": 0,
        "test_masked_steps_of_a_spectrum_are_as_if_they_were_not_there": 0,
        "test_directions_that_are_small_but_known_are_finite": 0,
        "test_what_it_reads_may_change": 0,
        "test_lags_that_stop_before_a_ragged_sequence_begins_leave_the_whole_unknown": 0,  # noqa: E501
        "test_what_is_not_finite_certifies_nothing": 1,
        "test_where_a_gradient_is_zero_its_logarithm_has_a_derivative_of_zero": 0,
        "test_numpys_integers_are_integers": 0,
        "test_of_dead_units_the_exponent_is_no_rounding": 0,
        "test_a_gradient_that_is_not_finite_spoils_the_fit": 0,
    },
    "explaining/test_explain.py": {
        "test_a_kernel_by_default_is_there_exactly_when_explained": ["MinGRU*-gpu"],
        "test_an_engine_by_name_runs_or_raises_as_explained": ["*memory=20000*"],
        "test_windows_are_those_run": 0,
        "test_what_fused_would_say_beside_another_engine": 0,
        "test_nothing_is_computed_and_arrays_are_as_good_as_shapes": 0,
        "test_a_layer_that_calls_unroll_is_seen_inside": 0,
        "test_what_explain_traces_is_never_run": 0,
        "test_float64_is_no_kernels": 0,
        "test_chunks_of_a_cell_that_joins_its_steps": 0,
        "test_steps_that_are_jaxs_own": 0,
        "test_cells_alike_are_told_once": 0,
    },
    # A loop of steps and its backward pass a row; the cells have laws of their own.
    "layers/test_blocks.py": {
        "test_a_block_is_its_steps": ["griffin"],
        "test_a_block_takes_any_number_of_features": ["griffin"],
        "test_a_stack_of_rwkv_blocks_is_rwkv7_without_values_that_cross": 0,
        "test_griffin_is_its_equations": 0,
        "test_new_rwkv_layers_are_the_identity": 0,
    },
    "layers/test_own_layers.py": {
        "test_a_layer_that_hands_truncation_on_is_right": ["alone-*"],
        "test_a_subclass_is_run_by_its_own_methods": ["step"],
        "test_an_unroll_in_a_layer_that_is_not_truncated_is_right": 1,
        "test_masked_outputs_of_any_layer_are_zero": ["in a stack"],
        "test_a_named_engine_that_does_not_know_the_step_refuses": [
            "step",
            "wrapper",
            "output",
        ],
        "test_a_cell_that_unrolls_in_its_step_runs_over_another_time": 0,
        "test_explain_says_why_the_loop_runs_a_subclass": 0,
    },
    "layers/test_small_layers.py": {
        "test_the_last_inputs_of_all_steps_at_once_are_those_of_a_loop": [
            "conv-mask resets reverse"
        ],
        "test_windows_cut_between_inputs_as_a_scale_of_zero_does": [
            "mask resets reverse"
        ],
        "test_half_precision_stays_and_its_sums_do_not": 0,
        "test_a_tied_layer_may_hold_tied_layers_and_a_share_keeps_its_names": 0,
        "test_apply_makes_vectors_of_tokens": 0,
        "test_concat_residual_and_multiply_are_their_parts": 0,
    },
    "sequences/test_sequences.py": {
        "test_it_is_picked_out_of_all_outputs": [
            "cell-mask resets",
            "cell-mask resets reverse",
        ],
        "test_vmap_is_the_batch": 0,
        "test_lengths_that_are_symbols": 0,
    },
    "decoding/test_rollout.py": {
        "test_it_is_a_loop_in_python": ["free"],
        "test_it_goes_on_where_unroll_ends": 0,
        "test_vmap_jit_and_noise": 0,
    },
    "decoding/test_beam.py": {
        "test_width_1_is_greedy_decoding": 0,
        "test_a_wide_beam_finds_the_true_best": 1,
        "test_the_best_score_is_never_below_greedys_on_200_models": 0,
        "test_a_batch_is_its_members": ["batch"],
        "test_scores_are_of_their_tokens_and_no_hypothesis_comes_twice": 0,
    },
    "decoding/test_generation.py": {
        "test_greedy_is_a_python_loop": 2,
        "test_frequencies_are_the_softmax": ["0.5-None", "3.0-3"],
    },
    "nnx/test_nnx.py": {
        "test_batch_first_and_time_major_are_unroll": ["stack_dropout"],
        "test_gradients_through_nnx": 0,
        "test_learned_initial_carry_and_streaming_steps": 0,
        "test_a_model_with_flax_layers_around_learns": 0,
        "test_no_batch_axis_and_two": 0,
        "test_split_merge_and_jit": 0,
        "test_sequence_lengths": 0,
    },
    "nnx/test_nnx_cells.py": {
        "test_a_changed_cell_computes_what_it_does_under_flax": 0,
        "test_lengths_of_any_dtype_and_lists": 1,
        "test_other_options_of_a_linear_map_are_left_to_flax": 1,
    },
    "nnx/test_nnx_flax.py": {
        "test_an_lstm_in_every_way": ["backwards, ragged"],
        "test_other_cells": ["GRUCell"],
        "test_built_in_cells_are_run_as_jaxrnns_own": 1,
        "test_both_directions": ["ours"],
        "test_bfloat16_stays_and_its_sums_do_not": 0,
        "test_steps_in_a_stream_are_the_sequence": 0,
        "test_both_directions_side_by_side_and_turned": 0,
        "test_dropout_in_both_directions": 0,
        "test_two_batch_axes_with_lengths": 0,
        "test_padding_puts_out_zeros_and_may_hold_nan": 0,
    },
    "linen/test_linen_flax.py": {
        "test_values_gradients_and_variables_are_flaxs": ["GRUCell-backwards, ragged"],
        "test_an_engine_runs_what_is_a_pure_function": ["averages"],
        "test_one_layer_of_several_calls_and_modules": 0,
        "test_carries_that_are_drawn": 0,
        "test_partitioned_parameters": 0,
        "test_padding_is_zero_holds_the_carry_and_may_be_nan": 0,
        "test_both_directions": 0,
        "test_both_directions_draw_their_carries_and_turn": 0,
        "test_a_changed_module_is_not_traced_again": 0,
    },
    "linen/test_linen_layers.py": {
        "test_in_a_compact_module_beside_flaxs_layers": 0,
    },
    "nnx/test_nnx_stateful.py": {
        "test_values_gradients_and_variables_are_flaxs": ["records-plain"],
        "test_it_is_a_python_loop_that_calls_the_cell": ["draws"],
        "test_padding_is_zero_holds_the_carry_and_may_be_nan": 0,
        "test_masks_resets_and_all_carries_are_the_engines": 0,
        "test_both_directions_of_cells_that_draw": 0,
        "test_a_training_step_under_jit": 0,
    },
    # a training script of flax's, twice
    "nnx/test_nnx_models.py": {"*": 0},
    # ------------------------------------------------------------- interop
    # each layer once; the other rows are options, and gradients are laws of the cells
    "interop/test_fla_weights.py": {
        "test_values_match_the_equations": [
            "gated_deltanet_grouped-float64",
            "gla_convolved-float64",
            "mamba-float64",
        ],
        "test_gradients_match_the_equations": 0,
        "test_conversion_can_be_traced": 2,
        "test_epsilon_of_the_norms": ["cell1"],
    },
    "interop/test_interop_flax.py": {
        "test_linen": ["*LSTMCell-2-True-float32"],
        "test_nnx": 0,
    },
    "interop/test_interop_keras.py": {
        "test_the_same_values_states_and_gradients": [
            "LSTM-2-True-*",
            "GRU before-2-True-*",
        ],
        "test_cells_and_stacked_cells": ["LSTM"],
    },
    "interop/test_onnx.py": {
        "test_ragged_lengths_and_a_carry": ["lstm learned", "gru before", "mgu"],
        "test_neither_lengths_nor_a_carry": ["dropout"],
        "test_lengths_without_a_carry": 1,
    },
    "interop/test_interop.py": {"test_there_and_back": EVERY},
    # ------------------------------------------------------ tasks and training
    # Mistakes, data, splits and scores: all. Of the runs: one that must beat its
    # baseline (synthetic: adding), one that is killed and resumed, in test_training.py
    # (all tasks go through the same `fit`), and the command line once.
    "tasks/test_captioning.py": {
        "test_killed_and_resumed_it_ends_with_identical_metrics": 0,
        "test_quick_beats_any_one_caption": 0,
        "test_captions_alone_and_padded_have_the_same_loss": 0,
        "test_a_users_folder": 0,
        "test_augmentation_is_small_and_by_key": 0,
        "test_half_of_the_images_stay_sharp": 0,
        "test_strokes_and_serifs": 0,
        "test_an_encoder_reads_a_quarter_of_the_side": ["full"],
        "test_halved_is_max_pooling_and_kernels_are_standardised": 0,
    },
    "tasks/test_sentiment.py": {
        "test_killed_and_resumed_it_ends_the_same": 0,
        "test_a_quick_run_on_reviews_beats_the_majority": 0,
        "test_a_label_that_training_never_showed_is_named_and_wrong": 0,
        # the tagger's, which is made of the same parts, is kept
        "test_padding_has_no_gradient": 0,
        # sentiment's is the same encoder
        "test_padding_never_matters": 0,
        "test_a_users_file_is_learned_and_scored": 0,
        "test_predict_takes_any_line": 0,
        "test_word_dropout_needs_a_key_and_draws_by_it": 0,
    },
    "tasks/test_series.py": {
        "test_a_new_model_is_nearly_naive_and_padding_never_matters": 0,
        "test_naive_forecasts_are_those_of_a_loop": ["4"],
        "test_the_rollout_is_a_loop_of_single_forecasts": 0,
        "test_labels_of_ragged_series": 0,
        "test_a_users_file_is_forecast": 0,
    },
    # the tasks whose vocabulary is stored as lists, and one without data
    "tasks/test_runs_go_on.py": {
        "test_a_finished_run_is_resumed": ["sentiment", "tagging"],
        "test_what_it_has_held_out_is_scored_as_at_its_end": ["tagging", "adding"],
    },
    "tasks/test_tagging.py": {
        "test_killed_and_resumed_it_ends_the_same": 0,
        "test_a_quick_run_on_the_treebank_beats_the_most_frequent_tag": 0,
        "test_a_tag_that_training_never_showed_is_named_and_wrong": 0,
        "test_padding_never_matters": 0,
        "test_a_users_file_is_learned_and_scored": 0,
        "test_predict_takes_any_line": 0,
        "test_training_draws_by_key": 0,
    },
    "tasks/test_translation.py": {
        "test_killed_and_resumed_it_ends_with_identical_metrics": 0,
        "test_quick_beats_copying_on_unseen_dates": 0,
        "test_a_users_file_with_every_option": 0,
        "test_scheduled_sampling": 0,
        "test_padding_does_not_matter": 0,
        "test_steps_are_teacher_forcing": 0,
        "test_dates_are_split_by_date_and_have_one_answer": ["en:ko"],
    },
    "tasks/test_synthetic.py": {
        "test_scores_are_those_of_a_plain_loop": ["parity"],
        "test_targets_are_those_of_a_slow_twin": 5,
        "test_the_same_key_gives_the_same_numbers_inside_and_outside_jit": 1,
        "test_symbols_stand_in_their_intervals_and_are_alike": 1,
        "test_marks_stand_one_in_each_half_at_every_place_alike": 1,
        "test_the_memoryless_loss_of_copy_is_that_of_the_best_memoryless_predictor": 1,
        "test_chance_is_what_the_commonest_answer_scores": 2,
        "test_the_constant_1_has_a_mean_squared_error_of_one_sixth": 1,
        "test_truncation_changes_gradients_but_not_scores": 0,
        "test_a_pooled_model_reads_the_mean_of_the_steps_that_are_no_padding": 0,
        "test_all_scores_hold_the_baseline_and_the_other_lengths": 0,
        "test_values_bits_letters_and_elements_are_uniform": 0,
    },
    "tasks/test_synthetic_runs.py": {
        "test_a_quick_run_leaves_its_files_and_is_better_than_nothing": ["adding"],
        "test_gradients_are_recorded_at_the_start_at_evaluations_and_at_the_end": [
            "adding"
        ],
        "test_evaluate_at_another_length": ["adding*"],
        "test_evaluate_at_the_training_length_gives_the_result_again": ["adding"],
        "test_the_instruments_see_what_the_task_sees": 0,
        "test_the_recorded_norms_are_those_of_plain_differentiation": 0,
        "test_killed_and_resumed_a_run_ends_with_the_same_files": 0,
        "test_a_cosine_and_a_stack_and_truncation_by_the_command_line": 0,
        "test_parity_without_longer_words_has_one_score": 0,
        "test_very_long_sequences_are_fewer": 0,
        "test_predict": 0,
        "test_predict_reads_words_as_the_generator_writes_them": 0,
        "test_the_run_says_its_score_beside_its_baseline": 0,
        "test_a_mistake_is_one_line_and_status_2": Without(
            ("unknown variant", "no element")
        ),
    },
    # Each shape compiles a generator of its own; the tight ones have every edge. The
    # model of tokens is tried with the scores by depth.
    "tasks/test_recall_tasks.py": {
        "test_every_query_of_mqar_has_its_pair_earlier_and_no_other": ["mqar tight"],
        "test_the_query_of_niah_is_the_key_of_one_of_its_needles": ["niah several"],
        "test_the_baselines_of_mqar_are_what_guessing_scores": ["mqar tight*"],
        "test_needles_stand_at_all_depths_alike": 0,
        "test_a_part_without_sequences_has_no_score": 0,
        "test_tokens_are_rows_of_the_embedding_and_learn_by_it": 0,
        "test_the_instruments_see_the_vectors_of_the_tokens": 0,
        "test_typed_tokens": 0,
        "test_scores_by_depth_are_those_of_a_plain_loop": 0,
    },
    "tasks/test_tasks.py": {
        "test_hello_learns_to_say_ello": ["gru-0"],
        # test_cli.py and test_training.py train it, too
        "test_charlm_learns_and_its_result_is_the_held_out_score": 0,
        "test_hello_prints_its_distribution_and_draws_it": 0,
    },
    # training/test_training.py damages a checkpoint, too
    "tasks/test_cli.py": {
        "test_a_damaged_checkpoint_is_passed_over_and_resuming_says_so": 0
    },
    "tasks/test_gradients_command.py": {
        "test_of_a_run_before_and_after_training": 0,
        "test_of_cells_at_initialization": 0,
    },
    "training/test_training.py": {
        # killed once in a process of its own is in the subprocess test below; in
        # process, a run is killed at each of its files in test_best.py
        "test_killed_and_resumed_a_run_ends_with_the_same_metrics": ["1"],
        "test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so": ["flip"],
        "test_control_c_saves_and_exits": 0,
        "test_seconds_stop_the_run_and_the_result_is_written": 0,
        "test_a_step_is_compiled_once": ["recall"],
    },
    "training/test_best.py": {
        "test_killed_and_resumed_it_keeps_the_same": ["44"],
        "test_the_first_of_the_best_is_kept_scored_and_read_back": ["max-40"],
    },
    "training/test_batches.py": {
        "test_looks_of_a_resumed_run_are_those_of_the_run_left_alone": 0,
        "test_a_look_is_recorded_at_the_start_at_evaluations_and_at_the_end": 0,
    },
    # Runs on two devices, in processes of their own; engines/test_data_parallel.py is
    # the many-device file of the default tier.
    "training/test_devices.py": {
        "test_on_two_devices": 0,
        "test_killed_and_resumed_on_two_devices_a_run_ends_with_the_same_metrics": 0,
        "test_a_run_from_before_there_was_a_choice_goes_on_on_one_device": 0,
        "test_a_run_on_two_devices_is_read_where_there_is_one": 0,
        "test_a_run_on_two_devices_goes_on_on_one": 0,
        "test_a_run_is_not_resumed_on_devices_that_are_not_there": 0,
    },
    # Each starts two processes or more, some seconds for every start.
    "training/test_processes.py": {
        "test_a_killed_run_ends_with_the_bytes_of_one_left_alone": 0,
        "test_a_run_goes_on_on_another_number": 0,
        "test_a_signal_to_one_process_stops_both_after_the_same_step": 0,
        "test_when_one_process_is_killed_the_other_ends": 0,
        "test_clocks_that_differ_give_the_same_learning_rates": 0,
        "test_other_tasks_split_their_batches": 0,
        "test_processes_that_slurm_has_started": 0,
        "test_a_loop_of_ones_own": 0,
        "test_a_coordinator_that_cannot_be_reached": ["1"],
        "test_a_directory_that_one_process_does_not_see": 0,
        "test_processes_with_other_data_or_another_task": 0,
        "test_an_error_in_one_process_ends_all": 0,
    },
    "training/test_orbax.py": {"test_on_two_devices_and_then_on_one": 0},
    "training/test_full_disk.py": {
        "test_each_file_of_a_run": ["metrics.jsonl-2-10"],
        "test_a_small_disk": 0,
        "test_no_room_for_a_checkpoint_and_a_run_that_goes_on": 0,
        "test_no_room_for_the_output": 0,
    },
    # ------------------------------------------- the repository, and what is frozen
    "repository/test_mended.py": {
        "test_padding_that_is_nan_before_the_model_reads_it_changes_nothing": 0,
        "test_learned_states_in_half_precision_stand_in_layers": 1,
        "test_the_compiled_gradient_is_the_eager_one": 0,
        "test_evaluating_a_long_text_takes_no_more_memory_than_a_short_one": 0,
    },
    "frozen/test_frozen.py": {
        "test_values_and_gradients": 1,
        "test_what_explain_says": 1,
    },
    # ----------------------------------------------------------- benchmarks
    "benchmarks/test_accelerator_benchmark.py": {
        "test_quick_writes_what_it_promises": 0,
        "test_what_time_was_too_short_for_is_listed": 1,
        "test_what_dies_is_left_out_and_the_rest_is_measured_again": 0,
        "test_each_result_is_written_as_soon_as_it_is_there_and_time_runs_out": 0,
        "test_torch_computes_the_same_on_the_same_arrays": 0,
        "test_every_answer_is_held_against_the_reference": 0,
        "test_without_an_accelerator_it_says_so": 0,
    },
    # A picture with lines and bars, and one of a run.
    "benchmarks/test_redraw.py": {
        "test_a_picture_is_drawn_from_its_numbers": [
            "gradient_decay_cpu*",
            "charlm_pydoc",
        ],
    },
    "benchmarks/test_scaling.py": {
        "test_quick_writes_what_it_promises": 0,
    },
    "benchmarks/test_benchmarks.py": {
        "test_newton_writes_what_it_promises": 0,
        "test_a_mean_field_network_takes_more_iterations_the_less_it_contracts": 0,
        "test_recall_trains_and_keeps_earlier_rows": 0,
        "test_gradient_decay_writes_what_it_promises": 0,
        "test_memory_writes_what_it_promises": 0,
        "test_streaming_writes_what_it_promises": 0,
        "test_a_process_of_its_own_reports_or_says_why_not": 0,
        "test_throughput_writes_what_it_promises": 0,
        "test_every_peer_that_is_installed_computes_the_same": 0,
        "test_a_wrong_weight_shows": 0,
        "test_baselines_are_written_with_their_command": 0,
        "test_online_measures_learns_and_writes": 0,
    },
    "repository/test_doctests.py": {
        "test_examples": Without(
            (
                "jaxrnn.cells.convolutional",
                "jaxrnn.cells.delta_net",
                "jaxrnn.cells.delta_product",
                "jaxrnn.cells.gdn2",
                "jaxrnn.cells.gla",
                "jaxrnn.cells.hgrn2",
                "jaxrnn.cells.kda",
                "jaxrnn.cells.liquid",
                "jaxrnn.cells.lru",
                "jaxrnn.cells.mamba",
                "jaxrnn.cells.mamba2",
                "jaxrnn.cells.mlstm",
                "jaxrnn.cells.mlstm_mixer",
                "jaxrnn.cells.orthogonal",
                "jaxrnn.cells.rwkv6",
                "jaxrnn.cells.rwkv7",
                "jaxrnn.cells.ssm",
                "jaxrnn.decoding.beam_search",
                "jaxrnn.decoding.closed_loop",
                "jaxrnn.diagnostics.fixed_point_report",
                "jaxrnn.diagnostics.jacobians",
                "jaxrnn.diagnostics.linear_error",
                "jaxrnn.diagnostics.lags",
                "jaxrnn.diagnostics.newton",
                "jaxrnn.diagnostics.online",
                "jaxrnn.diagnostics.parameter_lags",
                "jaxrnn.diagnostics.taps",
                "jaxrnn.engines.fused",
                "jaxrnn.engines.newton",
                "jaxrnn.engines.scan",
                "jaxrnn.explaining.table",
                "jaxrnn.explaining.tracing",
                "jaxrnn.initializers",
                "jaxrnn.interop.equinox_weights",
                "jaxrnn.layers.block",
                "jaxrnn.layers.compose",
                "jaxrnn.layers.pointwise",
                "jaxrnn.layers.pre_norm",
                "jaxrnn.layers.published_blocks",
                "jaxrnn.layers.rwkv",
                "jaxrnn.layers.stochastic",
                "jaxrnn.linen.bidirectional",
                "jaxrnn.linen.rnn",
                "jaxrnn.nnx.bidirectional",
                "jaxrnn.online.rtrl",
                "jaxrnn.online.traces",
                "jaxrnn.online.uoro",
                "jaxrnn.tasks.cell_comparison",
                "jaxrnn.tasks.runner",
                "jaxrnn.testing.check",
                "jaxrnn.testing.report",
                "jaxrnn.training.state",
                "jaxrnn.truncation.tbptt",
            )
        ),
    },
    "repository/test_tracing.py": {
        "test_tbptt_traces_one_window_however_many_there_are": 1,
    },
    "cells/test_ctrnn.py": {
        "test_dales_law_holds_in_training": 1,
    },
    "cells/test_rtu.py": {
        "test_without_an_activation_both_kinds_are_one": 1,
        "test_mixed_precision_keeps_the_state_in_float32": ["Nonlinear*"],
    },
    "cli/test_results.py": {
        "test_before_the_first_step_it_says_what_is_trained": 0,
        "test_evaluations_say_when_they_were_and_of_what": 0,
    },
    "diagnostics/test_diagnostics_context.py": {
        "test_it_is_that_of_the_context_among_the_inputs": [
            "gate_values-whole",
            "lyapunov_spectrum-whole",
        ],
        "test_the_bias_of_truncation_hands_the_context_on": 0,
    },
    "diagnostics/test_taps.py": {
        "test_gates_of_all_steps_have_the_means_of_the_statistics": 0,
        "test_every_cell_of_a_layer_is_seen": 0,
    },
    "gallery/test_pictures.py": {
        "test_conv_lstm": 0,
    },
    "tasks/test_own_cells.py": {
        "test_the_command_line_trains_and_opens_it_when_named": 0,
        "test_killed_and_resumed_a_run_ends_with_the_same_bytes": 0,
    },
    "tasks/test_report.py": {
        "test_other_tasks_show_what_they_read": ["hello"],
    },
    "matrix/test_refusals.py": {
        "test_carries_inside_chunks": 1,
    },
    "engines/test_grouping.py": {
        "test_join_is_the_inverse_of_split_and_labels_name_the_group": [
            "grouping1*",
            "grouping4*",
        ],
    },
    "nnx/test_nnx_inputs.py": {
        "test_a_tree_and_a_context_are_those_of_unroll": 0,
    },
}


UNMATCHED = []  # rules that found no row in this run, for repository/test_tiers.py


def rule_of(file, function):
    """What the table says of a function, or None."""
    rules = TABLE.get(file, {})
    return rules.get(function, rules.get("*"))


def choose(config, items):
    """Mark as slow what the default tier does not keep, and, for ``make quick``,
    leave out what that does not.

    A test that the command line names (``pytest file.py::test``) is never marked: who
    names it wants to see it run, with all its rows.
    """
    if any("::" in argument for argument in config.args):
        return
    cases.count(functions_of(items))
    if os.environ.get("JAXRNN_TIER") == "full":
        return
    quick = os.environ.get("JAXRNN_TIER") == "quick"
    left_out = []
    for (file, function), group in functions_of(items).items():
        rule = rule_of(file, function)
        kept = kept_rows(group, rule)
        UNMATCHED.extend(
            f"{file}::{function}: {like}" for like in unmatched(group, rule)
        )
        for item in group:
            if item not in kept:
                item.add_marker(pytest.mark.slow)
        if quick:
            few = [] if f"{file}::{function}" in NOT_IN_QUICK else few_rows(kept)
            left_out += [item for item in group if item not in few]
    if left_out:
        left = set(left_out)
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left_out)


def functions_of(items):
    """The collected rows of every function, by file (from tests/) and name."""
    groups = {}
    for item in items:
        if (file := file_of(item.path)) is not None:
            name = getattr(item, "originalname", None) or item.name
            groups.setdefault((file, name), []).append(item)
    return groups


@functools.cache
def file_of(path):
    """The path of a test file from tests/ on; None for one that is elsewhere."""
    return path.relative_to(TESTS).as_posix() if TESTS in path.parents else None


def id_of(item):
    return item.callspec.id if hasattr(item, "callspec") else ""


def kept_rows(group, rule):
    """The rows of one function that stay in the default tier. Rows that the file
    itself marks as slow, or for a GPU, do not count.
    """
    rows = [
        item
        for item in group
        if not (item.get_closest_marker("slow") or item.get_closest_marker("gpu"))
    ]
    if isinstance(rule, int):
        return spread(rows, rule)
    if isinstance(rule, list):
        return [row for row in rows if any_alike(row, rule)]
    if isinstance(rule, Without):
        return [row for row in rows if not any_alike(row, rule.likes)]
    if isinstance(rule, tuple):
        return of_subjects(kept_rows(rows, rule[0]), rule[1])
    if rule is None:
        return of_subjects(rows, WIDE) if len(rows) > 4 else rows
    return of_subjects(rows, rule)


def unmatched(group, rule):
    """The patterns and subjects of a rule that no row is like: renamed, or gone."""
    rule = rule[0] if isinstance(rule, tuple) else rule
    rule = list(rule.likes) if isinstance(rule, Without) else rule
    ids = [id_of(row) for row in group]
    if isinstance(rule, list):
        return [like for like in rule if not any(alike(name, like) for name in ids)]
    return []


def any_alike(row, patterns):
    return any(alike(id_of(row), like) for like in patterns)


def alike(name, pattern):
    """As in a shell, but for brackets, which stand for themselves in ids."""
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


def spread(rows, most):
    """At most so many rows, the first among them."""
    if most == 0 or len(rows) <= most:
        return rows if most else []
    return [rows[i * len(rows) // most] for i in range(most)]


def subject_of(row):
    """The name of the subject that a row is about, if it is about one."""
    name = getattr(row, "callspec", None) and row.callspec.params.get("name")
    subjects = sys.modules.get("subjects")
    known = getattr(subjects, "SUBJECTS", ())
    return name if isinstance(name, str) and name in known else None


def of_subjects(rows, wanted):
    """The rows of the wanted subjects, of each set of other parameters; of a subject
    and its learned twin, those of the twin. Where other parameters come with none of
    the wanted subjects, their first row; rows without a subject stay.
    """
    groups = {}
    for row in rows:
        subject = subject_of(row)
        if subject is None:
            others = row.nodeid
        else:
            params = {k: v for k, v in row.callspec.params.items() if k != "name"}
            others = tuple(sorted((k, str(v)) for k, v in params.items()))
        groups.setdefault(others, []).append((subject, row))
    kept = []
    for group in groups.values():
        best = {}
        for subject, row in group:
            kind = subject and subject.removesuffix("_learned")
            if kind in wanted and (kind not in best or subject != kind):
                best[kind] = row
        kept += best.values() if best else [group[0][1]]
    return kept


def few_rows(kept):
    """What ``make quick`` takes of a function's rows in the default tier: those of
    `SUBJECTS_OF_QUICK`, and otherwise three at most.
    """
    if any(subject_of(row) for row in kept):
        kept = of_subjects(kept, SUBJECTS_OF_QUICK)
    return spread(kept, 3)


# -- make quick ------------------------------------------------------------------------

# Single tests of the default tier that take more than some five seconds
NOT_IN_QUICK = {
    "cells/test_mlstm_chunks.py::test_chunks_are_the_steps",
    "engines/test_across.py::test_over_eight_devices",
    "engines/test_cudnn.py::test_a_network_is_one_call",
    "engines/test_cudnn.py::test_vmap_joins_the_batch",
    "engines/test_data_parallel.py::test_over_four_devices",
    "engines/test_fuzz.py::test_engines_are_a_python_loop",
    "tasks/test_cli.py::test_training_leaves_a_run_directory",
    "training/test_training.py::"
    "test_killed_and_resumed_a_run_ends_with_the_same_metrics",
    "truncation/test_truncation.py::test_every_engine_scales_alike",
    "truncation/test_truncation.py::test_the_bias_is_that_of_the_lag_sums",
    "truncation/test_truncation.py::test_vmap_is_the_batch",
}


@functools.cache
def end_of_quick():
    """When ``make quick`` begins no more tests, in seconds since 1970."""
    return float(os.environ.get("JAXRNN_QUICK_UNTIL", "inf"))


def skip_when_time_is_up(item):
    if time.time() > end_of_quick():
        file = item.path.relative_to(TESTS).as_posix()
        pytest.skip(f"the time of make quick is up: pytest tests/{file} runs the rest")
