import time
from tests.ledger.test_rewind import *  # noqa
from tests.ledger.test_rewind import interleaved
def test_rate(shore):
    made = interleaved(shore)
    for ids in (made[:1], made):
        t=time.perf_counter(); plan = rollback.plan(rollback.Wanted(shore.project, patches=tuple(p.pk for p in ids))); t1=time.perf_counter()
        print([s.outcome for s in plan.steps], "plan", t1-t)
    t1=time.perf_counter()
    rollback.carry_out(plan, "x", by=ADA); print("carry", time.perf_counter()-t1)
