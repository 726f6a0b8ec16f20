"""Addresses of the costs' pages, and of OTLP."""

from django.urls import path

from costs import otlp_views, views

app_name = "costs"
urlpatterns = [
    path("costs/", views.costs, name="list"),
    path("costs/truth/", views.truth, name="truth"),
    path("costs/budgets/", views.budgets, name="budgets"),
    path("costs/budgets/<ulid:pk>/change-limit/", views.change_limit, name="change_limit"),
    path("costs/statement/", views.statement, name="statement"),
    path("costs/export.csv", views.export, {"form": "csv"}, name="export"),
    path("costs/export.parquet", views.export, {"form": "parquet"}, name="export_parquet"),
    path("otlp/v1/metrics", otlp_views.metrics, name="otlp_metrics"),
    path("otlp/v1/logs", otlp_views.logs, name="otlp_logs"),
    path("otlp/v1/traces", otlp_views.traces, name="otlp_traces"),
]
