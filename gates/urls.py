"""Addresses of the gates' pages."""

from django.urls import path

from gates import quality_views, views

app_name = "gates"
urlpatterns = [
    path("gates/", views.gate_runs, name="list"),
    path("gates/proposals/<slug:key>/", quality_views.proposals, name="proposals"),
    path("gates/<ulid:pk>/", quality_views.gate, name="gate"),
    path("gates/<ulid:pk>/quarantine/", quality_views.quarantine, name="quarantine"),
    path("gates/flaky/<ulid:pk>/release/", quality_views.flaky_release, name="flaky-release"),
    path("gates/runs/<ulid:pk>/", views.gate_run, name="run"),
    path("gates/runs/<ulid:pk>/rerun/", views.gate_run_rerun, name="rerun"),
    path("gates/runs/<ulid:pk>/skip/", views.gate_run_skip, name="skip"),
    path("gates/runs/<ulid:pk>/waive/", views.gate_run_waive, name="waive"),
    path("gates/runs/<ulid:pk>/revoke-waiver/", views.gate_run_revoke_waiver, name="revoke-waiver"),
]
