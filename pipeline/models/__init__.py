"""The nouns that every app shares: projects and plans, runs and tasks, tools, holds, keys, and the log of what
happened.
"""

from pipeline.events import Event, EventEpoch, EventStream, FailedReaction
from pipeline.models.attempt import ExecutionRequest, PromptInstance, StepAttempt
from pipeline.models.hold import Hold
from pipeline.models.key import ApiKey, StoredAnswer
from pipeline.models.notification import NotificationRule
from pipeline.models.plan import Phase, Workstream
from pipeline.models.project import ROLES, Membership, Project, User
from pipeline.models.run import Run
from pipeline.models.task import Task, TaskDependency
from pipeline.models.tick import Tick
from pipeline.models.tool import RoutingDecision, Tool
from pipeline.models.webhook import Delivery, Subscription, WebhookEndpoint

__all__ = [
    "ROLES",
    "ApiKey",
    "Delivery",
    "Event",
    "EventEpoch",
    "EventStream",
    "ExecutionRequest",
    "FailedReaction",
    "Hold",
    "Membership",
    "NotificationRule",
    "Phase",
    "Project",
    "PromptInstance",
    "RoutingDecision",
    "Run",
    "StepAttempt",
    "StoredAnswer",
    "Subscription",
    "Task",
    "TaskDependency",
    "Tick",
    "Tool",
    "User",
    "WebhookEndpoint",
    "Workstream",
]
