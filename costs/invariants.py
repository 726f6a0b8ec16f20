"""What must hold between booked costs, what they were spent on, and prices (domain.md §6)."""

from costs.models import Reservation
from pipeline.invariants import query, told

query(
    53,
    "money is finite, non-negative, in a currency, classed",
    """
    SELECT id FROM costs_costrecord WHERE amount<0 OR amount='NaN' OR currency !~ '^[A-Z]{3}$'
        OR (landing='waste')<>(waste_cause<>'') OR (voided_at IS NOT NULL AND void_reason='')
    """,
)
query(
    54,
    "each cost has one leaf, with that leaf's ancestors",
    """
    SELECT c.id FROM costs_costrecord c LEFT JOIN pipeline_stepattempt a ON a.id=c.attempt_id
        WHERE (c.leaf_kind='none')<>(c.leaf_id IS NULL)
            OR (c.leaf_kind='attempt' AND c.leaf_id IS DISTINCT FROM c.attempt_id)
            OR (a.id IS NOT NULL AND (c.run_id IS DISTINCT FROM a.run_id OR c.task_id IS DISTINCT FROM a.task_id))
    """,
)
query(
    55,
    "each use is booked once",
    """
    SELECT source FROM costs_costrecord WHERE idempotency_key<>'' GROUP BY source, idempotency_key HAVING count(*)>1
    """,
)
query(
    56,
    "spent is the sum of its charges",
    """
    SELECT p.id FROM costs_budgetperiod p WHERE p.spent<>(SELECT COALESCE(sum(c.amount),0) FROM costs_charge h
        JOIN costs_costrecord c ON c.id=h.record_id WHERE h.period_id=p.id AND c.voided_at IS NULL)
    """,
)
query(
    57,
    "reserved is the rest of its held reservations",
    """
    SELECT p.id FROM costs_budgetperiod p WHERE p.reserved<>(SELECT COALESCE(sum(r.amount-r.used),0)
        FROM costs_reservationshare s JOIN costs_reservation r ON r.id=s.reservation_id
        WHERE s.period_id=p.id AND r.state='held')
    """,
)
# The hold follows the breach by a reaction. A phase, model or person has holds over its runs and tools, if it has any.
query(
    58,
    "beyond the limit only as a recorded breach, and a breach holds",
    """
    SELECT p.id FROM costs_budgetperiod p JOIN costs_budget b ON b.id=p.budget_id
        WHERE (p.spent+p.reserved>p.limit_amount AND p.breached_at IS NULL)
            OR (b.active AND b.on_breach='hold' AND p.spent>0 AND p.spent>=p.limit_amount AND p.hold_id IS NULL
                AND b.scope_kind NOT IN ('phase','model','user')
                AND (p.ends_at IS NULL OR p.ends_at>clock_timestamp())
                AND p.breached_at<clock_timestamp()-interval '30 seconds')
    """,
)
# A claim makes reservation and lease together, of one task and generation.
query(
    59,
    "held money belongs to living work",
    """
    SELECT r.id FROM costs_reservation r
        LEFT JOIN workers_lease l ON l.task_id=r.task_id AND l.generation=r.generation
        WHERE r.used>r.amount OR (r.state='held' AND (l.ended_at IS NOT NULL
            OR (l.id IS NULL AND COALESCE(r.expires_at, r.created_at)<clock_timestamp()-interval '30 seconds')))
    """,
)
query(
    60,
    "daily spend equals the live records",
    """
    SELECT d.day FROM (SELECT day, currency, sum(amount) a FROM costs_dailyspend GROUP BY day, currency) d
        FULL JOIN (SELECT (recorded_at AT TIME ZONE 'UTC')::date AS day, currency, sum(amount) a FROM costs_costrecord
            WHERE voided_at IS NULL GROUP BY 1, 2) c USING (day, currency) WHERE COALESCE(d.a,0)<>COALESCE(c.a,0)
    """,
)
query(
    61,
    "one valid price per model and moment",
    """
    SELECT a.id FROM costs_price a JOIN costs_price b ON a.id<b.id AND a.provider=b.provider AND a.model=b.model
        AND a.currency=b.currency AND a.superseded_at IS NULL AND b.superseded_at IS NULL
        AND tstzrange(a.effective_from,a.effective_to) && tstzrange(b.effective_from,b.effective_to)
    """,
)
query(
    74,
    "a running period has its budget's limit",
    """
    SELECT p.id FROM costs_budgetperiod p JOIN costs_budget b ON b.id=p.budget_id
        WHERE p.limit_amount<>b.limit_amount AND p.starts_at<=clock_timestamp()
            AND (p.ends_at IS NULL OR p.ends_at>clock_timestamp())
    """,
)

told(Reservation)
