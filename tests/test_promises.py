"""Each promise of docs/promises.md has a fast test, which runs by default, and a full one."""

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "promises.md"

# Promise: its fast test, and its full one.
PROMISES = {
    "A run that is killed at any moment and resumed until it is done ends equal": (
        "training/test_kills.py::test_runs_killed_at_random_moments_end_with_the_same_result",
        "training/test_kills.py::test_runs_killed_at_random_moments_end_with_the_same_result",
    ),
    "Every step can be resumed from": (
        "training/test_kills.py::test_every_step_is_a_valid_resume_point",
        "training/test_kills.py::test_every_step_is_a_valid_resume_point",
    ),
    "A run can be resumed again and again": (
        "training/test_kills.py::test_resumes_inside_one_epoch_end_with_the_same_result",
        "training/test_kills.py::test_resumes_inside_one_epoch_end_with_the_same_result",
    ),
    "A run that is killed again and again after twice its start-up time still makes progress": (
        "training/test_stopping.py::test_by_default_a_run_saves_half_a_second_after_its_start",
        "training/test_kills.py::test_a_run_that_is_killed_again_and_again_progresses",
    ),
    "A checkpoint leaves nothing out": (
        "training/test_kills.py::test_losing_any_item_of_the_state_changes_the_result",
        "training/test_kills.py::test_losing_any_item_of_the_state_changes_the_result",
    ),
    "SIGINT, SIGTERM and SIGUSR1 save, and end with exit code 130 or 143": (
        "training/test_kills.py::test_a_signal_at_a_random_moment_saves_and_the_resumed_run_ends_with_the_same_result",
        "training/test_kills.py::test_a_signal_at_a_random_moment_saves_and_the_resumed_run_ends_with_the_same_result",
    ),
    "A second signal ends at once and leaves a valid checkpoint": (
        "training/test_kills.py::test_a_second_signal_ends_the_run_immediately_and_leaves_a_valid_checkpoint",
        "training/test_kills.py::test_a_second_signal_ends_the_run_immediately_and_leaves_a_valid_checkpoint",
    ),
    "Two runs never share a folder": (
        "training/test_run.py::test_two_runs_in_one_second_get_two_folders",
        "training/test_kills.py::test_runs_started_in_one_second_get_separate_folders",
    ),
    "A save is all or nothing, whichever system call fails": (
        "checkpoints/test_write_faults.py::test_a_kill_before_each_call_of_a_save_leaves_the_old_or_new_file",
        "checkpoints/test_write_faults.py::test_a_kill_at_each_call_of_a_save_leaves_the_old_or_new_file",
    ),
    "The only good checkpoint is never deleted": (
        "checkpoints/test_write_faults.py::test_a_kill_before_each_call_of_a_rotation_never_costs_the_only_good_file",
        "checkpoints/test_write_faults.py::test_a_kill_at_each_call_of_a_rotation_never_costs_the_only_good_file",
    ),
    "A run in which a system call fails, or kills it, can be resumed": (
        "checkpoints/test_write_faults.py::test_a_run_killed_at_a_call_resumes_to_the_same_result",
        "checkpoints/test_write_faults.py::test_a_run_that_fails_at_each_call_resumes_to_the_same_result",
    ),
    "A checkpoint with an altered byte is refused": (
        "checkpoints/test_write_faults.py::test_flips_cuts_and_swaps_of_a_real_checkpoint_are_each_refused",
        "checkpoints/test_write_faults.py::test_2000_flips_500_cuts_and_200_swaps_of_a_real_checkpoint_are_each_refused",
    ),
    "If the newest checkpoint is damaged, the one before is used and both are named": (
        "checkpoints/test_write_faults.py::test_damaged_newest_checkpoints_fall_back_to_the_previous_one",
        "checkpoints/test_write_faults.py::test_damaged_newest_checkpoints_fall_back_to_the_previous_one_100_of_100",
    ),
    "A full disk ends with exit code 74, the path and the bytes needed; the old checkpoint stays": (
        "checkpoints/test_write_faults.py::test_a_full_disk_ends_a_run_in_brief_and_the_old_checkpoint_resumes",
        "checkpoints/test_write_faults.py::"
        "test_a_full_disk_ends_a_run_in_brief_and_the_old_checkpoint_resumes_20_of_20",
    ),
    "A save that fails is never silent": (
        "checkpoints/test_write_faults.py::test_a_resume_with_a_read_only_folder_or_file_is_code_74",
        "checkpoints/test_write_faults.py::test_a_failure_at_each_call_of_a_save_leaves_the_old_or_new_file_and_is_reported",
    ),
    "A loss that is NaN or infinite changes no weight; the step and the tensor are named": (
        "training/test_nonfinite.py::test_a_nonfinite_value_is_reported_with_step_and_tensor_and_changes_nothing",
        "training/test_nonfinite.py::test_two_hundred_nonfinite_values_are_reported_with_step_and_tensor_and_change_nothing",
    ),
    "NaN never becomes the best": (
        "training/test_progress.py::test_a_nonfinite_metric_never_becomes_best_in_any_sequence",
        "training/test_progress.py::test_a_nonfinite_metric_never_becomes_best_in_any_sequence",
    ),
    "The same command gives the same bits": (
        "training/test_run.py::test_the_same_command_gives_the_same_bits",
        "training/test_repeatability.py::test_twenty_processes_give_the_same_bits_whatever_folder_hash_seed_and_load",
    ),
    "A change of environment is reported, or refused": (
        "training/test_resume.py::test_a_changed_environment_is_reported_with_all_differences",
        "training/test_resume.py::test_a_changed_environment_is_refused_if_the_run_must_be_deterministic",
    ),
    "A checkpoint of another model is reported before any data is read": (
        "training/test_resume.py::test_weights_that_do_not_fit_are_named_before_data_is_read",
        "training/test_resume.py::test_the_weights_of_another_model_are_refused_before_data_is_read",
    ),
    "Running out of memory gives one clear error and keeps the last checkpoint": (
        "training/test_resume.py::test_out_of_memory_is_reported_and_the_last_checkpoint_resumes",
        "training/test_resume.py::test_out_of_memory_is_reported_and_the_last_checkpoint_resumes",
    ),
    "A job of a sweep that dies takes nothing else with it": (
        "sweeps/test_faults.py::test_jobs_that_die_in_several_ways_are_rows_and_the_others_finish",
        "sweeps/test_faults.py::test_twenty_jobs_with_nine_kinds_of_failures_all_become_rows",
    ),
    "A sweep whose parent process is killed can be continued": (
        "sweeps/test_resume.py::test_a_killed_sweep_resumes_to_the_same_table",
        "sweeps/test_resume.py::test_fifty_killed_parents_lose_nothing",
    ),
    "The journal of a sweep survives a kill while it is written": (
        "sweeps/test_resume.py::test_a_truncated_journal_keeps_every_complete_line_once",
        "sweeps/test_resume.py::test_a_truncated_journal_keeps_every_complete_line_once",
    ),
    "A search that is killed ends with the number of trials it was asked for": (
        "sweeps/test_search.py::test_a_killed_search_ends_with_the_exact_number_of_trials",
        "sweeps/test_search.py::test_thirty_killed_searches_end_with_the_exact_number_of_trials",
    ),
    "A job of a sweep equals the same run started alone": (
        "sweeps/test_sweeps.py::test_a_job_equals_the_same_run_started_alone_with_the_same_threads",
        "sweeps/test_sweeps.py::test_a_job_equals_the_same_run_started_alone_with_the_same_threads",
    ),
    "A run under torchrun with a killed worker ends equal": (
        "runtime/test_distributed.py::test_a_process_that_torchrun_starts_again_continues_its_run_to_the_same_result",
        "runtime/test_distributed.py::test_a_killed_process_is_restarted_and_the_run_ends_with_the_same_result",
    ),
    "A signal to one of several processes stops them all, with one checkpoint": (
        "runtime/test_distributed.py::test_a_signal_to_one_rank_is_known_to_all_ranks_in_the_same_step",
        "runtime/test_distributed.py::test_a_signal_to_one_process_stops_all_with_one_checkpoint",
    ),
    "Weights & Biases holds the metrics of metrics.jsonl, none twice": (
        "report/test_wandb.py::test_a_killed_and_resumed_run_is_in_wandb_as_in_metrics_jsonl",
        "report/test_wandb.py::test_a_resumed_run_sends_only_the_rows_that_the_server_lacks",
    ),
    "Trackers hold the metrics of metrics.jsonl, none twice": (
        "report/test_trackers.py::test_all_trackers_hold_exactly_the_metrics_of_a_run",
        "report/test_trackers.py::test_a_killed_and_resumed_run_is_tracked_like_an_uninterrupted_one",
    ),
    "Damaged data is refused before it is used": (
        "data/test_idx.py::test_every_damaged_file_with_a_known_checksum_is_refused_with_both_checksums",
        "data/test_cifar10.py::test_every_damaged_file_is_refused_with_both_sums",
    ),
    "Eight processes that start at once download a file once": (
        "data/test_download.py::test_eight_cold_processes_at_once_download_once",
        "data/test_download.py::test_survivors_of_kills_and_a_failing_server_get_the_data_and_nothing_partial_is_seen",
    ),
    "Read-only and offline data works": (
        "data/test_download.py::test_data_in_a_folder_that_cannot_be_written_is_read_without_a_write_or_a_network",
        "data/test_download.py::test_data_missing_in_a_folder_that_cannot_be_written_is_named_in_at_most_three_lines",
    ),
    "Reading a checkpoint runs no code and imports none": (
        "checkpoints/test_hostile.py::test_a_hostile_file_is_refused_when_it_is_read",
        "checkpoints/test_hostile.py::test_a_hostile_file_runs_nothing_and_is_refused_in_brief",
    ),
    "The config in a checkpoint chooses no code": (
        "checkpoints/test_hostile.py::test_a_few_configs_cannot_choose_code",
        "checkpoints/test_hostile.py::test_a_config_in_a_checkpoint_cannot_choose_code",
    ),
    "A config cannot make Hydra run, import or write anything": (
        "config/test_hydra_guard.py::test_a_hostile_hydra_node_on_the_command_line_is_refused",
        "config/test_hydra_guard.py::test_a_hostile_hydra_node_in_an_untrusted_experiment_is_refused",
    ),
    "Small files that claim to be large are refused at once": (
        "checkpoints/test_bombs.py::test_a_few_checkpoint_bombs_are_refused_immediately",
        "checkpoints/test_bombs.py::test_checkpoint_bombs_are_refused_immediately",
    ),
    "A damaged or forged checkpoint ends in one error": (
        "checkpoints/test_mutated.py::test_a_few_mutated_files_are_read_or_refused_in_brief",
        "checkpoints/test_mutated.py::test_twenty_thousand_mutated_files_are_read_or_refused_in_brief",
    ),
    "A typo is answered with the right name": (
        "config/test_typos.py::test_at_least_95_percent_of_all_typos_are_answered_with_the_right_name",
        "config/test_typos.py::test_at_least_95_percent_of_all_typos_are_answered_with_the_right_name",
    ),
    "A command line is a config or a named error": (
        "config/test_composition.py::test_a_composition_is_a_config_that_reads_back_or_a_named_error",
        "config/test_composition.py::test_a_composition_is_a_config_that_reads_back_or_a_named_error",
    ),
    "Files are written in the run's folder alone": (
        "runtime/test_writes.py::test_some_commands_write_nothing_outside_their_folder",
        "runtime/test_writes.py::test_no_command_writes_outside_its_folder",
    ),
    "No secret of the environment gets into a file": (
        "runtime/test_secrets.py::test_no_file_contains_a_value_from_the_environment",
        "runtime/test_secrets.py::test_no_file_contains_a_value_from_the_environment",
    ),
}


@cache
def module(path: str) -> ModuleType:
    """Import a file of tests."""
    spec = importlib.util.spec_from_file_location(
        f"promises_{path.replace('/', '_').removesuffix('.py')}", TESTS / path
    )
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def cases(node: str) -> Iterator[set[str]]:
    """Yield the marks of each value of a test's parameters; of the test itself where it has none."""
    path, name = node.split("::")
    test = getattr(module(path), name)
    marks = list(getattr(test, "pytestmark", []))
    own = {mark.name for mark in marks}
    for mark in marks:
        if mark.name == "parametrize":
            values = [{each.name for each in getattr(value, "marks", ())} for value in mark.args[1]]
            if any(values):
                yield from (own | marked for marked in values)
                return
    yield own


def test_each_promise_has_a_fast_test_that_runs_by_default_and_a_full_one() -> None:
    for fast, full in PROMISES.values():
        assert any(not marks & {"slow", "torture"} for marks in cases(fast)), f"{fast} does not run by default"
        assert list(cases(full)), full


def test_the_promises_are_those_that_the_documents_make() -> None:
    tables = re.findall(r"(?m)^\| promise \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8"))
    made = [row.split("|")[1].strip() for table in tables for row in table.splitlines()]
    assert sorted(made) == sorted(PROMISES)
