"""Addresses of the gates' pages."""

from django.urls import path

from gates import views

app_name = "gates"
urlpatterns = [
    path("gates/", views.gate_runs, name="list"),
    path("gates/runs/<ulid:pk>/", views.gate_run, name="run"),
    path("gates/runs/<ulid:pk>/rerun/", views.gate_run_rerun, name="rerun"),
    path("gates/runs/<ulid:pk>/skip/", views.gate_run_skip, name="skip"),
    path("gates/runs/<ulid:pk>/waive/", views.gate_run_waive, name="waive"),
]
