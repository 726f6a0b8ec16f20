"""The API of the costs: what was used and what it came to, prices, budgets, and money set aside."""

from costs.api import budgets, prices, records, reservations
from pipeline.rest import Router

router = Router()
router.register("costs", records.CostEndpoint, basename="cost")
router.register("prices", prices.PriceEndpoint, basename="price")
router.register("budgets", budgets.BudgetEndpoint, basename="budget")
router.register("reservations", reservations.ReservationEndpoint, basename="reservation")
urlpatterns = router.urls
