"""The wiring of the house as one literal table: who reacts to what, who answers what, and what is done by the clock."""

from celery import current_app

from pipeline import events, questions
from pipeline.celery import SCHEDULE

REACTIONS = {
    "task.validating": ["pipeline.reactions.advance_run"],
    "task.completed": ["pipeline.reactions.advance_run", "costs.reactions.reclass"],
    "task.retrying": ["pipeline.reactions.advance_run"],
    "task.cancelled": ["pipeline.reactions.advance_run", "ledger.reactions.follow_the_task", "costs.reactions.reclass"],
    "task.failed": ["pipeline.reactions.advance_run", "ledger.reactions.follow_the_task", "costs.reactions.reclass"],
    "hold.released": ["pipeline.reactions.advance_run", "costs.reactions.go_on_in_the_next_period"],
    "lease.ended": [
        "pipeline.reactions.advance_run",
        "ledger.reactions.follow_the_task",
        "costs.reactions.judge_the_loop",
    ],
    "cost.anomaly": ["costs.reactions.pause_the_worker"],
    "budget.added": ["costs.reactions.count_what_was_earlier"],
    "budget.breached": ["costs.reactions.hold_the_scope"],
    "budget.changed": ["costs.reactions.count_what_was_earlier"],
    "patch.created": ["workers.reactions.see_progress", "ledger.reactions.start_validation"],
    "patch.resubmitted": ["workers.reactions.see_progress"],
    "patch.validated": ["ledger.reactions.enqueue"],
    "patch.queued": ["ledger.reactions.advance_queue"],
    "patch.applied": ["ledger.reactions.advance_queue", "gates.reactions.open_gates"],
    "patch.committed": [
        "pipeline.reactions.advance_run",
        "ledger.landing_reactions.keep_receipt",
        "ledger.landing_reactions.owe_push",
        "ledger.reactions.queue_those_behind",
        "costs.reactions.reclass",
    ],
    "push.resumed": ["ledger.landing_reactions.push_again"],
    "patch.released": ["ledger.reactions.start_validation", "costs.reactions.reclass"],
    "patch.rejudged": ["ledger.reactions.start_validation"],
    "patch.dropped": [
        "pipeline.reactions.advance_run",
        "ledger.reactions.drop_those_behind",
        "costs.reactions.reclass",
    ],
    "patch.apply_failed": ["pipeline.reactions.advance_run"],
    "patch.quarantined": ["pipeline.reactions.advance_run", "costs.reactions.reclass"],
    "patch.rolled_back": [
        "pipeline.reactions.advance_run",
        "ledger.reactions.drop_those_behind",
        "costs.reactions.reclass",
    ],
    "override.used": ["ledger.review_reactions.go_on"],
    "review.given": ["ledger.review_reactions.go_on"],
    "merge_queue.resumed": ["ledger.reactions.advance_queue"],
    "queue_item.passing": ["ledger.reactions.advance_queue"],
    "queue_item.landed": ["ledger.reactions.advance_queue"],
    "queue_item.failing": ["ledger.reactions.advance_queue"],
    "queue_item.restarted": ["ledger.reactions.advance_queue", "gates.reactions.skip_what_is_left"],
    "queue_item.withdrawn": ["ledger.reactions.advance_queue", "gates.reactions.skip_what_is_left"],
    "queue_item.evicted": ["ledger.reactions.advance_queue", "gates.reactions.skip_what_is_left"],
    "gate_run.created": ["gates.reactions.start_runner"],
    "gate_run.passed": [
        "ledger.reactions.advance_queue",
        "gates.reactions.start_runner",
        "gates.reactions.count_passes",
    ],
    "gate_run.waived": [
        "pipeline.reactions.advance_run",
        "ledger.reactions.advance_queue",
        "gates.reactions.start_runner",
    ],
    "gate_run.waiver_revoked": ["ledger.reactions.advance_queue"],
    "gate_run.failed": ["ledger.reactions.advance_queue", "gates.reactions.count_passes"],
    "gate_run.error": ["ledger.reactions.advance_queue", "gates.reactions.run_again"],
}

ANSWERS = {
    "task.claim": ["ledger.reactions.base_and_checkout", "costs.reactions.set_money_aside"],
    "lease.end": ["costs.reactions.book_use"],
    "lease.report": ["ledger.reactions.check_patches"],
    "lease.extend": ["costs.reactions.set_more_aside"],
    "task.feedback": ["ledger.review_reactions.what_reviewers_said"],
    "task.stop": ["workers.reactions.ask_lease_to_stop"],
    "task.complete": ["ledger.reactions.are_patches_landed"],
    "run.complete": ["ledger.reactions.is_a_patch_open"],
    "tree.verdict": ["gates.reactions.verdict_of_tree"],
    "patch.commit": ["gates.reactions.is_verdict_fresh"],
    "patch.receipt": ["gates.receipts.gates_of_patch", "costs.reactions.cost_of_patch"],
    "project.branch": ["ledger.landing_reactions.must_have_branch"],
    "blockers": [
        "gates.blockers.who_holds",
        "costs.blockers.who_holds",
        "ledger.blockers.who_holds",
        "workers.blockers.who_holds",
    ],
}

LANDING_TASKS = ("push", "push_due", "fetch", "fetch_due", "note_receipts", "tidy_mirrors", "watch_receipts")

CHORES = [
    "pipeline.orchestrate.sweep",
    "pipeline.orchestrate.end_due_holds",
    "pipeline.notifications.send_due",
    "pipeline.webhooks.deliver_due",
    "workers.sweeping.sweep",
    "ledger.receipts.note_rest",
    "ledger.remote.push_due",
    "ledger.remote.fetch_due",
    "ledger.reviewing.set_aside_lapsed",
    "ledger.reactions.place_patches",
    "ledger.reactions.expire_quarantines",
    "ledger.validation.validate_created",
    "ledger.queue.advance_all",
    "ledger.heads.watch_heads",
    "gates.running.close_lost",
    "gates.external.close_unheard",
    "gates.reactions.open_missing_gates",
    "gates.reactions.wake_owners",
    "gates.running.run_pending",
    "costs.guarding.end_overdue_reservations",
    "costs.guarding.book_estimates",
    "costs.models.charging.count_earlier",
    "costs.fates.reclass_forgotten",
    "costs.fates.reconcile_now_and_then",
]


def test_every_event_that_somebody_reacts_to_is_reacted_to_by_these() -> None:
    assert events.table() == REACTIONS


def test_every_question_is_answered_by_these() -> None:
    assert questions.table() == ANSWERS


def test_the_sweep_does_these_chores() -> None:
    assert [f"{work.__module__}.{work.__name__}" for work, _send in events._chores] == CHORES


def test_celery_knows_these_tasks_and_no_other_of_ours() -> None:
    current_app.loader.import_default_modules()
    ours = {name for name in current_app.tasks if not name.startswith("celery.")}
    assert ours == {
        "costs.tasks.count_earlier",
        "costs.tasks.note_refusal",
        "gates.tasks.run_pending",
        "gates.tasks.tidy",
        *(f"ledger.landing_tasks.{name}" for name in LANDING_TASKS),
        "ledger.tasks.advance",
        "ledger.tasks.seal",
        "ledger.tasks.validate",
        "ledger.tasks.watch_log",
        "pipeline.tasks.deliver",
        "pipeline.tasks.notify",
        "pipeline.tasks.react",
        "pipeline.tasks.sweep",
        "pipeline.tasks.tidy",
    }


def test_the_clock_starts_these() -> None:
    periods = {
        "pipeline.tasks.sweep": 1,
        "pipeline.tasks.tidy": 3600,
        "ledger.tasks.seal": 5,
        "ledger.tasks.watch_log": 86_400,
        "ledger.landing_tasks.tidy_mirrors": 3600,
        "ledger.landing_tasks.watch_receipts": 86_400,
        "gates.tasks.tidy": 3600,
    }
    assert {line.task: line.seconds for line in SCHEDULE} == periods
    schedule = current_app.conf.beat_schedule
    assert {name: entry["schedule"] for name, entry in schedule.items()} == periods
    assert all(entry["options"]["expires"] >= 2 * entry["schedule"] for entry in schedule.values())
