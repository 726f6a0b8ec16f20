"""The API of the gates: definitions, every run with its results and log, and tests that are set aside."""

from gates.api import definitions, flaky, runs
from pipeline.rest import Router

router = Router()
router.register("gates", definitions.GateEndpoint, "gate")
router.register("flaky-tests", flaky.FlakyTestEndpoint, "flaky-test")
router.register("gate-runs", runs.GateRunEndpoint, "gate-run")

urlpatterns = router.urls
