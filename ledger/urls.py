"""Addresses of the ledger's pages."""

from django.urls import path

from ledger import landing_views, review_views, rollback_views, seal_views, views

app_name = "ledger"
urlpatterns = [
    path("ledger/", views.patches, name="list"),
    path("ledger/bulk/", views.patches_bulk, name="bulk"),
    path("ledger/remotes/", landing_views.remotes, name="remotes"),
    path("ledger/remotes/<ulid:pk>/fetch/", landing_views.remote_fetch, name="remote_fetch"),
    path("ledger/receipts/", landing_views.receipts, name="receipts"),
    path("ledger/receipts/<ulid:pk>/", landing_views.receipt, name="receipt"),
    path("ledger/rewind/", rollback_views.rewind, name="rewind"),
    path("ledger/<ulid:pk>/", views.patch, name="patch"),
    path("ledger/<ulid:pk>/diff/", views.patch_diff, name="diff"),
    path("ledger/<ulid:pk>/quarantine/", views.patch_quarantine, name="quarantine"),
    path("ledger/<ulid:pk>/release/", views.patch_release, name="release"),
    path("ledger/<ulid:pk>/drop/", views.patch_drop, name="drop"),
    path("ledger/<ulid:pk>/requeue/", views.patch_requeue, name="requeue"),
    path("ledger/<ulid:pk>/rollback/", rollback_views.patch_rollback, name="rollback"),
    path("ledger/<ulid:pk>/approve/", review_views.patch_approve, name="approve"),
    path("ledger/<ulid:pk>/reject/", review_views.patch_reject, name="reject"),
    path("ledger/<ulid:pk>/comment/", review_views.patch_comment, name="comment"),
    path("ledger/<ulid:pk>/override/", review_views.patch_override, name="override"),
    path("ledger/<ulid:pk>/since/<ulid:against>/", review_views.patch_interdiff, name="interdiff"),
    path("ledger/reviews/", review_views.waiting, name="reviews_waiting"),
    path("projects/<str:key>/policy/", review_views.policy, name="policy"),
    path("projects/<str:key>/policy/<ulid:pk>/replay/", review_views.policy_replay, name="policy_replay"),
    path("events/seals/", seal_views.seals, name="seals"),
    path("events/seals/verify/", seal_views.look_now, name="seals_verify"),
    path("merge-queue/", views.merge_queues, name="merge_queue"),
    path("merge-queue/<ulid:pk>/pause/", views.queue_pause, name="queue_pause"),
    path("merge-queue/<ulid:pk>/resume/", views.queue_resume, name="queue_resume"),
]
