"""What must hold between workers, leases and tasks (domain.md §6)."""

from pipeline.invariants import query, told
from workers.models import Worker

query(
    1,
    "a busy worker has a task; idle and finished ones have none",
    """
    SELECT id FROM workers_worker WHERE (state='busy' AND current_task_id IS NULL)
        OR (state IN ('idle','stopped','crashed') AND current_task_id IS NOT NULL)
    """,
)
query(
    2,
    "a worker's task is the task of its live lease",
    """
    SELECT w.id FROM workers_worker w LEFT JOIN workers_lease l ON l.worker_id=w.id AND l.ended_at IS NULL
        WHERE w.current_task_id IS DISTINCT FROM l.task_id
    """,
)
query(
    3,
    "one live lease per task and per worker",
    """
    SELECT task_id FROM workers_lease WHERE ended_at IS NULL GROUP BY task_id HAVING count(*)>1
    UNION ALL SELECT worker_id FROM workers_lease WHERE ended_at IS NULL GROUP BY worker_id HAVING count(*)>1
    """,
)
query(
    4,
    "a task runs iff it has a live lease",
    """
    SELECT t.id FROM pipeline_task t LEFT JOIN workers_lease l ON l.task_id=t.id AND l.ended_at IS NULL
        WHERE (t.state='running')<>(l.id IS NOT NULL)
    """,
)
query(
    5,
    "live generations agree",
    """
    SELECT l.id FROM workers_lease l JOIN pipeline_task t ON t.id=l.task_id
        JOIN pipeline_stepattempt a ON a.id=l.attempt_id
        WHERE l.ended_at IS NULL AND (l.generation<>t.generation OR a.generation IS DISTINCT FROM l.generation)
    """,
)
query(
    6,
    "a live lease and a running attempt of a task go together",
    """
    SELECT a.id FROM pipeline_stepattempt a LEFT JOIN workers_lease l ON l.attempt_id=a.id AND l.ended_at IS NULL
        WHERE (l.id IS NOT NULL AND a.state<>'running')
            OR (a.state='running' AND a.task_id IS NOT NULL AND l.id IS NULL)
    """,
)
query(
    7,
    "one lease per task and generation",
    "SELECT task_id FROM workers_lease GROUP BY task_id, generation HAVING count(*)>1",
)
query(
    8,
    "no live lease outlives its expiry by three sweeps",
    """
    SELECT id FROM workers_lease WHERE ended_at IS NULL AND expires_at < clock_timestamp() - interval '15 seconds'
    """,
)
query(
    9,
    "a lease never passes its deadline",
    "SELECT id FROM workers_lease WHERE expires_at > deadline_at OR ended_at < acquired_at",
)
query(
    23,
    "end facts of a worker match its state",
    """
    SELECT id FROM workers_worker WHERE (state='crashed')<>(crashed_at IS NOT NULL)
        OR (state='stopped')<>(stopped_at IS NOT NULL)
        OR tasks_completed<0 OR tasks_failed<0 OR total_execution_seconds<0
    """,
)
query(
    24,
    "a worker counts no more than its ended leases",
    """
    SELECT w.id FROM workers_worker w WHERE w.tasks_completed+w.tasks_failed>(
        SELECT count(*) FROM workers_lease l WHERE l.worker_id=w.id AND l.ended_at IS NOT NULL)
    """,
)
query(
    25,
    "silent idle workers are crashed",
    """
    SELECT id FROM workers_worker WHERE (state='idle' OR (state='paused' AND current_task_id IS NULL))
        AND COALESCE(transport_seen_at,started_at) < clock_timestamp() - interval '330 seconds'
    """,
)
query(
    26,
    "nothing is claimed under a hold",
    """
    SELECT l.id FROM workers_lease l JOIN pipeline_task t ON t.id=l.task_id JOIN pipeline_run r ON r.id=t.run_id
        JOIN pipeline_hold h ON h.state='active' AND h.since<l.acquired_at AND (
            h.scope_kind='installation'
            OR (h.scope_kind='project' AND h.scope_id=r.project_id::text)
            OR (h.scope_kind='workstream' AND h.scope_id=r.workstream_id::text)
            OR (h.scope_kind='run' AND h.scope_id=r.id::text)
            OR (h.scope_kind='task' AND h.scope_id=t.id::text))
    """,
)
told(Worker)
