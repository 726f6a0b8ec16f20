"""What was at any time, on a real installation: `python -m tests.chaos.asof install`, the demo, then `… check`.

`install` keeps every version of every told row from then on, by triggers of its own, in the database of SIGNALBOX_DATA;
`check` folds every object at a thousand random times from its events alone and compares it with the version that was
there then, and with the row that is there now. Exit code 1 names what is not the same. For throw-away databases only:

    export SIGNALBOX_DATA=/tmp/asof
    python manage.py up --no-demo     # Ctrl-C once it answers: the tables are there
    python -m tests.chaos.asof install
    make up                           # until the demo has ended
    python -m tests.chaos.asof check
"""

import os
import random
import sys
from bisect import bisect_right
from typing import Any


def check() -> int:
    """Prints how much was compared and what differs; returns the exit code."""
    from pipeline.fold import fold, tellings, until
    from tests.test_fold import TIMES, TOLD, Recorder, differences, moments, untrue_now

    kept = Recorder.__new__(Recorder)  # installed earlier
    lives = [(model, pk, *rows) for model in TOLD for pk, rows in kept.versions(model).items()]
    told = {pk: tellings(model.noun(), pk) for model, pk, _times, _rows in lives}
    seen: set[tuple[str, int, int]] = set()
    untrue: dict[tuple[str, str], Any] = {}
    for at in moments(kept, random.Random(os.environ.get("CHAOS_SEED", "1"))):
        for model, pk, times, rows in lives:
            place = bisect_right(times, at)
            key = (pk, place, len(until(told[pk], at)))
            if key in seen:
                continue
            seen.add(key)
            for name, found, held in differences(fold((model.noun(), pk), at), rows[place - 1] if place else None):
                untrue.setdefault((model.noun(), name), (pk, str(at), found, held))
    nouns = sorted({model.noun() for model, *_rest in lives})
    now = untrue_now()
    print(f"{len(lives)} objects ({', '.join(nouns)}) at {TIMES} times, {len(seen)} different folds")
    print(f"not as they were: {untrue}\nnot as they are: {now}")
    return 1 if untrue or now or not lives else 0


def main() -> int:
    """`install` or `check`."""
    from pipeline.embedded import around

    if sys.argv[1:] not in (["install"], ["check"]):
        print(__doc__)
        return 2
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "pipeline.settings")
    with around(["shell"], os.environ):
        import django

        django.setup()
        if sys.argv[1] == "check":
            return check()
        from tests.test_fold import Recorder

        Recorder()
        print("from now on every version is kept")
        return 0


if __name__ == "__main__":
    sys.exit(main())
