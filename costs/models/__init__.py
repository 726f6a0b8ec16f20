"""What the costs keep: prices, records, their sums by day, budgets, and what OTLP's meters have told."""

from costs.models.budget import (
    Budget,
    BudgetExceeded,
    BudgetPeriod,
    Charge,
)
from costs.models.daily import DailySpend
from costs.models.metering import OtlpMark, OtlpMeter, SignalCount
from costs.models.price import Price, TsTzRange
from costs.models.record import TOKEN_FIELDS, CostRecord
from costs.models.reservation import Reservation, ReservationShare

__all__ = [
    "TOKEN_FIELDS",
    "Budget",
    "BudgetExceeded",
    "BudgetPeriod",
    "Charge",
    "CostRecord",
    "DailySpend",
    "OtlpMark",
    "OtlpMeter",
    "Price",
    "Reservation",
    "ReservationShare",
    "SignalCount",
    "TsTzRange",
]
