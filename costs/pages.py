"""What the page of costs and its panels on other pages share: the totals, each currency for itself."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from django.db.models import Count, Q, QuerySet, Sum

from costs.models import CostRecord

DAYS = 14
"""How many days, today included, the sums by day reach back."""


def totals(rows: "QuerySet[CostRecord]") -> list[Mapping[str, Any]]:
    """Per currency the live `amount`, how much of it is `waste` or `unpriced`, and the number `n` of records."""
    zero = Decimal(0)
    found = (
        rows.filter(voided_at=None)
        .values("currency")
        .annotate(
            waste=Sum("amount", filter=Q(landing="waste"), default=zero),
            unpriced=Sum("amount", filter=Q(unpriced=True), default=zero),
            n=Count("pk"),
            amount=Sum("amount"),  # last: from here on the name means the sum
        )
    )
    return list(found.order_by("currency"))
