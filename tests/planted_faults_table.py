"""The faults of tests/planted_faults.py: a line of the library each, and the tests that
are near to it.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Fault:
    """A piece of a file, which occurs once, and what is put in its place.

    ``tests`` are files of tests/, and ``rows`` is pytest's ``-k``: fewer rows than the
    default tier has, never others.
    """

    name: str
    file: str
    was: str
    becomes: str
    tests: str
    rows: str = ""

    def planted(self, text):
        """The text of the file with the fault in it."""
        if text.count(self.was) != 1:
            raise SystemExit(
                f"{self.name}: {self.file} holds {self.was!r} {text.count(self.was)} "
                f"times, and must once: mend tests/planted_faults_table.py"
            )
        return text.replace(self.was, self.becomes)


FORWARD, MASKS = "laws/test_laws_forward.py", "laws/test_laws_masks.py"
TBPTT, NOISE = "laws/test_laws_tbptt.py", "laws/test_laws_noise.py"
EQUATIONS = "cells/test_cells.py"
GOLDEN = "interop/test_golden.py"
TRAINING = "training/test_training.py"

FAULTS = [
    # ---------------------------------------------------------------- gates
    Fault(
        "lstm_forgets_twice",
        "cells/lstm.py",
        "c = f * c + (1 - f if",
        "c = f * f * c + (1 - f if",
        EQUATIONS,
        "equations and lstm",
    ),
    Fault(
        "lstm_peeps_at_the_old_state",
        "cells/lstm.py",
        "o = jax.nn.sigmoid(o + p_o * c)",
        "o = jax.nn.sigmoid(o + p_o * carry.c)",
        EQUATIONS,
        "equations and lstm",
    ),
    Fault(
        "lstm_bias_opens_another_gate",
        "cells/lstm.py",
        "f = self.gates - 3  #",
        "f = self.gates - 2  #",
        "core/test_initializers.py cells/test_cells.py",
        "lstm or forget or chrono",
    ),
    Fault(
        "gru_updates_the_wrong_way",
        "cells/gru.py",
        "return (1 - update) * n + update * carry",
        "return update * n + (1 - update) * carry",
        EQUATIONS,
        "equations and gru",
    ),
    Fault(
        "min_gru_keeps_what_it_writes",
        "cells/minimal.py",
        "return jax.nn.sigmoid(-update), ",
        "return jax.nn.sigmoid(update), ",
        EQUATIONS,
        "equations and min_gru",
    ),
    Fault(
        "a_recurrent_sum_is_rounded",
        "cells/ops.py",
        "h.astype(kernel.dtype), kernel, preferred_element_type="
        "accumulator(kernel.dtype)",
        "h.astype(kernel.dtype), kernel",
        EQUATIONS,
        "float32 or half",
    ),
    # ------------------------------------------------------ masks and resets
    Fault(
        "mask_is_ignored",
        "engines/recurrence/run.py",
        "return new if mask is None else select(mask, new, carry)",
        "return new",
        MASKS,
        "hole or padded",
    ),
    Fault(
        "masked_outputs_are_shown",
        "unrolling/parts.py",
        "return last, zero_where_masked(cell, ys, spec.mask), carries",
        "return last, ys, carries",
        FORWARD,
        "is_a_python_loop and gru",
    ),
    Fault(
        "padding_reaches_the_step",
        "core/masked_inputs.py",
        "_filling.bind(mask, leaf)[None]",
        "leaf",
        "cells/test_masked_steps.py laws/test_laws_masks.py",
    ),
    Fault(
        "reset_forgets_the_learned_state",
        "engines/recurrence/run.py",
        "select(reset, cell.initial_carry(params, reset.shape), carry)",
        "select(reset, jax.tree.map(lambda a: 0 * a, carry), carry)",
        FORWARD,
        "is_a_python_loop and gru",
    ),
    Fault(
        "streaming_ignores_resets",
        "core/cell.py",
        "carry = select(checked_reset(reset, batch), initial, carry)",
        "checked_reset(reset, batch)",
        "core/test_inputs.py core/test_context.py",
        "stream",
    ),
    # --------------------------------------------------------------- reverse
    Fault(
        "other_direction_keeps_resets_in_place",
        "core/unroll_spec.py",
        "resets=self._across(self.resets, self.reversed_resets, False),",
        "resets=self.resets,",
        FORWARD,
        "is_a_python_loop and bidirectional",
    ),
    Fault(
        "short_window_at_the_wrong_end",
        "engines/recurrence/chunks.py",
        "begin = rest if reverse else 0\n    end",
        "begin = 0\n    end",
        TBPTT,
        "where_windows_begin",
    ),
    Fault(
        "parallel_loop_ends_at_the_beginning",
        "engines/loops/parallel_prefix.py",
        "return [states[0 if reverse else -1] for",
        "return [states[0] for",
        "engines/test_linear.py",
        "every_run",
    ),
    Fault(
        "carries_before_a_step_are_those_after",
        "engines/loops/parallel_prefix.py",
        "[carries[1:], first[None]] if reverse else [first[None], carries[:-1]]",
        "[carries[1:], first[None]] if reverse else [carries[:1], carries[:-1]]",
        FORWARD,
        "is_a_python_loop and (gru or s5)",
    ),
    # ------------------------------------------------------------ truncation
    Fault(
        "windows_stop_no_gradient",
        "unrolling/parts.py",
        "select(is_first, carry, jax.lax.stop_gradient(carry))",
        "select(is_first, carry, carry)",
        TBPTT,
        "where_windows_begin",
    ),
    Fault(
        "tbptt_goes_on_from_the_wrong_step",
        "truncation/tbptt.py",
        "jax.lax.dynamic_index_in_dim(a, advance - 1, keepdims=False)",
        "jax.lax.dynamic_index_in_dim(a, advance - 2, keepdims=False)",
        TBPTT,
        "lags",
    ),
    Fault(
        "tbptt_counts_losses_twice",
        "truncation/tbptt.py",
        "is_new = jnp.arange(k2) >= k2 - new_steps",
        "is_new = jnp.arange(k2) >= 0 * new_steps",
        TBPTT,
        "lags",
    ),
    Fault(
        "tbptt_weighs_short_windows_alike",
        "truncation/tbptt.py",
        "lambda g: g * (count / valid)",
        "lambda g: g * (1 / valid)",
        TBPTT,
        "updates",
    ),
    Fault(
        "artbp_scales_down",
        "truncation/artbp.py",
        "1 / (1 - probabilities))",
        "1 / (1 + probabilities))",
        "truncation/test_truncation.py",
        "unbiased or scale or cuts",
    ),
    # --------------------------------------------------- sums of weight gradients
    Fault(
        "only_the_last_chunk_is_summed",
        "engines/recurrence/backward.py",
        "s if chunk_sum is None else s + chunk_sum.astype(s.dtype)",
        "s if chunk_sum is None else chunk_sum.astype(s.dtype)",
        "engines/test_engines.py",
        "is_the_python_loop or are_the_python_loop",
    ),
    Fault(
        "a_running_sum_does_not_run",
        "engines/recurrence/running_sums.py",
        "total = total + value.astype(total.dtype)",
        "total = value.astype(total.dtype)",
        "engines/test_sums.py",
        "running",
    ),
    Fault(
        "cotangents_of_all_carries_are_lost",
        "engines/recurrence/backward.py",
        "g + next(cotangents) if p else g",
        "(next(cotangents), g)[1] if p else g",
        FORWARD,
        "is_a_python_loop and gru",
    ),
    Fault(
        "a_checkpoint_starts_elsewhere",
        "engines/recurrence/passes.py",
        "jax.lax.dynamic_index_in_dim(a, index, keepdims=False)",
        "jax.lax.dynamic_index_in_dim(a, 0, keepdims=False)",
        "engines/test_engines.py",
        "are_the_python_loop",
    ),
    Fault(
        "maps_compose_wrongly",
        "engines/loops/parallel_prefix.py",
        "late[0] * early[0]), apply(",
        "late[0] + early[0]), apply(",
        "engines/test_linear.py",
        "every_run",
    ),
    Fault(
        "forward_mode_loses_the_inputs",
        "engines/recurrence/passes.py",
        "zip(diff_input_ids, d_x, strict=True)",
        "zip(diff_input_ids, [0 * d for d in d_x], strict=True)",
        "engines/test_engines.py laws/test_laws_gradients.py",
        "jvp or forward_mode",
    ),
    # ---------------------------------------------------------------- layers
    Fault(
        "dropout_does_not_scale",
        "layers/stochastic_cells.py",
        "xs / (1 - rate), jnp.zeros_like(xs)",
        "xs, jnp.zeros_like(xs)",
        NOISE,
    ),
    Fault(
        "zoneout_keeps_the_rest",
        "layers/stochastic_cells.py",
        "return _mix(jnp.where, z[1], carry, new)",
        "return _mix(jnp.where, z[1], new, carry)",
        NOISE,
        "zoneout",
    ),
    Fault(
        "residual_takes_away",
        "layers/compose.py",
        "return last, xs + ys, carries",
        "return last, xs - ys, carries",
        "layers/test_small_layers.py",
        "residual",
    ),
    Fault(
        "layers_of_a_stack_share_a_key",
        "layers/compose.py",
        "carry[i], xs, spec, i\n            )\n            last_carries",
        "carry[i], xs, spec, 0\n            )\n            last_carries",
        NOISE,
        "stack",
    ),
    Fault(
        "multiply_squares",
        "layers/skip.py",
        "return lasts, ys[0] * ys[1], carries",
        "return lasts, ys[0] * ys[0], carries",
        "layers/test_small_layers.py",
        "multiply",
    ),
    Fault(
        "last_inputs_count_padding",
        "core/lagged_inputs.py",
        "self.rank = count - mask.astype(jnp.int32)",
        "self.rank = count",
        "layers/test_small_layers.py",
        "last_inputs",
    ),
    Fault(
        "last_output_is_the_one_before",
        "sequences.py",
        "return (lead[0] - 1 - jnp.argmax(mask[::-1], axis=0)).astype(jnp.int32)",
        "return (lead[0] - 2 - jnp.argmax(mask[::-1], axis=0)).astype(jnp.int32)",
        "sequences/test_sequences.py",
        "picked_out or no_outputs",
    ),
    # -------------------------------------------------------------- decoding
    Fault(
        "a_finished_hypothesis_goes_on",
        "decoding/beam_search.py",
        "jnp.where(search.done[..., None], only_end, logp)",
        "logp",
        "decoding/test_beam.py",
    ),
    Fault(
        "beams_swap_their_parents",
        "decoding/beam_search.py",
        "carry=jax.tree.map(of_parent, carry),",
        "carry=carry,",
        "decoding/test_beam.py",
    ),
    Fault(
        "greedy_hypothesis_may_fall_out",
        "decoding/beam_search.py",
        "likeliest & (search.done | search.greedy)[..., None]",
        "likeliest & search.done[..., None]",
        "decoding/test_beam.py",
    ),
    Fault(
        "a_temperature_multiplies",
        "decoding/sampling.py",
        "(likeliest - likeliest[..., :1]) / temperature",
        "(likeliest - likeliest[..., :1]) * temperature",
        "decoding/test_generation.py core/test_scalars.py",
    ),
    # ------------------------------------------------ checkpoints and training
    Fault(
        "a_damaged_checkpoint_is_read",
        "training/checkpoints.py",
        "if _checksums[kind](arrays) != meta[kind]:",
        "if False:",
        TRAINING,
        "damaged and checksum",
    ),
    Fault(
        "records_are_not_rewound",
        "training/run.py",
        'if r["step"] <= step and not r.get("final")',
        'if not r.get("final")',
        TRAINING,
        "rewound",
    ),
    Fault(
        "the_last_parameters_are_the_best",
        "training/checkpoints.py",
        "step) if best is None else best",
        "step)",
        "training/test_best.py",
    ),
    Fault(
        "every_step_draws_the_same",
        "training/state.py",
        "jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)",
        "jax.random.wrap_key_data(state.key)",
        "training/test_batches.py training/test_training.py",
        "key or draw or step or update",
    ),
    Fault(
        "a_resumed_run_begins_anew",
        "training/fit.py",
        "self.step, self.state, meta, notes, self.best = self.checkpoints.restore(",
        "self.step, _, meta, notes, self.best = self.checkpoints.restore(",
        "training/test_best.py training/test_hooks.py",
        "resum",
    ),
    Fault(
        "losses_are_not_weighted",
        "training/train_step.py",
        "state.loss + loss * tokens,",
        "state.loss + loss,",
        TRAINING,
        "optax",
    ),
    Fault(
        "a_batch_step_follows_the_sum",
        "training/batches.py",
        "return total / jnp.maximum(count, jnp.ones_like(count)), (total, count)",
        "return total, (total, count)",
        "training/test_batches.py",
        "optax",
    ),
    # ------------------------------------------------------------ converters
    Fault(
        "torch_bias_of_a_candidate",
        "interop/arithmetic.py",
        '"recurrent_bias": of_states[edge:],',
        '"recurrent_bias": of_inputs[edge:],',
        GOLDEN,
        "torch",
    ),
    Fault(
        "keras_gates_are_not_turned",
        "interop/keras_weights.py",
        "TURNED = (1, 0, 2)",
        "TURNED = (0, 1, 2)",
        GOLDEN,
        "keras",
    ),
    Fault(
        "haiku_gates_are_not_turned",
        "interop/haiku_weights.py",
        "LSTM_ORDER = (0, 2, 1, 3)",
        "LSTM_ORDER = (0, 1, 2, 3)",
        GOLDEN,
        "haiku",
    ),
    Fault(
        "flax_gates_are_backwards",
        "interop/flax_weights.py",
        '[arrays[f"{name}.kernel"] for name in of_states]',
        '[arrays[f"{name}.kernel"] for name in reversed(of_states)]',
        "interop/test_interop_flax.py interop/test_interop.py",
        "linen or nnx or back",
    ),
    Fault(
        "onnx_gates_are_jaxrnns",
        "interop/onnx_cells.py",
        "else ([0, 3, 1, 2], (1, 1, 1, 1))",
        "else ([0, 1, 2, 3], (1, 1, 1, 1))",
        "interop/test_onnx.py",
        "lstm",
    ),
    # ------------------------------------------------------ data and metrics
    Fault(
        "a_forecast_is_of_the_present",
        "tasks/data/windows.py",
        "later = at[..., None] + 1 + np.arange(windows.horizon)",
        "later = at[..., None] + np.arange(windows.horizon)",
        "tasks/test_series.py tasks/test_series_files.py",
    ),
    Fault(
        "a_short_batch_repeats_an_example",
        "tasks/data/bucketing.py",
        "np.full(missing, -1, members.dtype)",
        "np.full(missing, 0, members.dtype)",
        "tasks/test_buckets.py",
    ),
    Fault(
        "validation_is_most_of_it",
        "tasks/data/splits.py",
        "split_by(split.train, key, (0.9, 0.1))",
        "split_by(split.train, key, (0.1, 0.9))",
        "tasks/test_tables.py tasks/test_tagging.py tasks/test_series.py",
        "split or part or validation or series",
    ),
    Fault(
        "tabs_are_no_separators",
        "tasks/data/tables.py",
        'or "\\t" in first:',
        "or False:",
        "tasks/test_tables.py",
    ),
    Fault(
        "bigrams_are_not_smoothed",
        "tasks/metrics/ngrams.py",
        "unigram[after]) / (single[before] + size)",
        "unigram[after]) / (single[before] + 1)",
        "tasks/test_token_files.py cli/test_results.py",
        "baseline",
    ),
    Fault(
        "f1_is_accuracy",
        "tasks/metrics/classification.py",
        'average="macro", zero_division=0',
        'average="micro", zero_division=0',
        "tasks/test_sentiment.py",
        "scores",
    ),
    Fault(
        "errors_are_squared",
        "tasks/metrics/forecasts.py",
        "return _by_column(np.abs(forecast - truth))",
        "return _by_column((forecast - truth) ** 2)",
        "tasks/test_series.py",
        "naive or error or mase or forecast",
    ),
    Fault(
        "attention_sees_padding",
        "tasks/models/attention.py",
        "else self.key(values), mask)",
        "else self.key(values), jnp.ones_like(mask))",
        "tasks/test_translation.py",
        "padding or attention",
    ),
    Fault(
        "decay_is_growth",
        "diagnostics/decay.py",
        "return DecayFit(jnp.exp(slope), tau,",
        "return DecayFit(jnp.exp(-slope), tau,",
        "diagnostics/test_diagnostics.py",
        "line or decay",
    ),
]
