"""Addresses of the ledger's pages."""

from django.urls import path

from ledger import rollback_views, views

app_name = "ledger"
urlpatterns = [
    path("ledger/", views.patches, name="list"),
    path("ledger/rewind/", rollback_views.rewind, name="rewind"),
    path("ledger/<ulid:pk>/", views.patch, name="patch"),
    path("ledger/<ulid:pk>/diff/", views.patch_diff, name="diff"),
    path("ledger/<ulid:pk>/quarantine/", views.patch_quarantine, name="quarantine"),
    path("ledger/<ulid:pk>/release/", views.patch_release, name="release"),
    path("ledger/<ulid:pk>/drop/", views.patch_drop, name="drop"),
    path("ledger/<ulid:pk>/requeue/", views.patch_requeue, name="requeue"),
    path("ledger/<ulid:pk>/rollback/", rollback_views.patch_rollback, name="rollback"),
    path("merge-queue/", views.merge_queues, name="merge_queue"),
]
