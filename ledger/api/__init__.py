"""The API of the ledger: patches with their reviews, their queues, policies, remotes, receipts and seals."""

from django.urls import path

from ledger.api import patches, policies, queues, receipts, remotes, seals
from pipeline.rest import Router

router = Router()
router.register("patches", patches.PatchEndpoint, "patch")
router.register("merge-queues", queues.MergeQueueEndpoint, "merge-queue")
router.register("policies", policies.PolicyEndpoint, "policy")
router.register("remotes", remotes.RemoteEndpoint, "remote")
router.register("pushes", remotes.PushEndpoint, "push")
router.register("receipts", receipts.ReceiptEndpoint, "receipt")
router.register("seals", seals.SealEndpoint, "seal")

urlpatterns = [
    *router.urls,
    path(
        "projects/<str:project>/policy/",
        policies.PolicyEndpoint.as_view({"get": "of_project"}),
        name="project-policy",
    ),
    path("projects/<str:project>/fetch/", remotes.RemoteEndpoint.as_view({"post": "fetch"}), name="project-fetch"),
    path(
        "merge-queues/<str:project>/<path:branch>/",
        queues.MergeQueueEndpoint.as_view({"get": "of_branch"}),
        name="merge-queue-of-branch",
    ),
]
