"""The API's part of the nouns that every app shares: their addresses, one line each."""

from pipeline.api import (
    access,
    blockers,
    events,
    failures,
    holds,
    notifications,
    planning,
    reading,
    running,
    subscriptions,
)
from pipeline.rest import Router

router = Router()
router.register("projects", planning.ProjectEndpoint, "project")
router.register("phases", planning.PhaseEndpoint, "phase")
router.register("workstreams", planning.WorkstreamEndpoint, "workstream")
router.register("tools", planning.ToolEndpoint, "tool")
router.register("memberships", access.MembershipEndpoint, "membership")
router.register("keys", access.KeyEndpoint, "key")
router.register("me", access.MeEndpoint, "me")
router.register("runs", running.RunEndpoint, "run")
router.register("tasks", running.TaskEndpoint, "task")
router.register("steps", running.StepEndpoint, "step")
router.register("requests", reading.RequestEndpoint, "request")
router.register("prompts", reading.PromptEndpoint, "prompt")
router.register("routing-decisions", reading.DecisionEndpoint, "routing-decision")
router.register("blockers", blockers.BlockerEndpoint, "blocker")
router.register("holds", holds.HoldEndpoint, "hold")
router.register("events", events.EventEndpoint, "event")
router.register("failed-reactions", failures.FailedReactionEndpoint, "failed-reaction")
router.register("notifications", notifications.NotificationRuleEndpoint, "notification-rule")
router.register("subscriptions", subscriptions.SubscriptionEndpoint, "subscription")
router.register("webhooks", subscriptions.WebhookEndpointEndpoint, "webhook")
router.register("deliveries", subscriptions.DeliveryEndpoint, "delivery")

urlpatterns = router.urls
