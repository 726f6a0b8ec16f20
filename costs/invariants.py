"""What must hold between booked costs, what they were spent on, and prices (domain.md §6)."""

from pipeline.invariants import query

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
    61,
    "one valid price per model and moment",
    """
    SELECT a.id FROM costs_price a JOIN costs_price b ON a.id<b.id AND a.provider=b.provider AND a.model=b.model
        AND a.currency=b.currency AND a.superseded_at IS NULL AND b.superseded_at IS NULL
        AND tstzrange(a.effective_from,a.effective_to) && tstzrange(b.effective_from,b.effective_to)
    """,
)
