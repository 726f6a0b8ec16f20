"""Table of contents: every address of the console and of the API."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerView

from pipeline import health, views, webhook_views
from pipeline.auth import HasRole, signed_in

handler400 = "pipeline.problems.bad_request"
handler403 = "pipeline.problems.denied"
handler404 = "pipeline.problems.not_found"
handler500 = "pipeline.problems.server_error"

api: list[URLPattern | URLResolver] = [
    path("", include("pipeline.api")),
    path("", include("workers.api")),
    path("", include("ledger.api")),
    path("", include("gates.api")),
    path("", include("costs.api")),
    path("schema/", SpectacularJSONAPIView.as_view(permission_classes=[HasRole]), name="schema"),
    path("docs/", signed_in(SpectacularSwaggerView.as_view(url_name="schema")), name="docs"),
]

runs = [
    path("", views.runs, name="list"),
    path("start/", views.start_workstream, name="start_workstream"),
    path("<ulid:pk>/", views.run, name="run"),
    path("<ulid:pk>/attempts/<int:sequence>/", views.attempt, name="attempt"),
    path("<ulid:pk>/start/", views.run_start, name="start"),
    path("<ulid:pk>/cancel/", views.run_cancel, name="cancel"),
    path("<ulid:pk>/hold/", views.run_hold, name="hold"),
    path("<ulid:pk>/release/", views.run_release, name="release"),
    path("<ulid:pk>/retry/", views.run_retry, name="retry"),
    path("holds/<ulid:pk>/release/", views.hold_release, name="hold_release"),
]

events = [
    path("", views.events, name="list"),
    path("failed/", views.failed_reactions, name="failed"),
    path("failed/<ulid:pk>/replay/", views.failed_reaction_replay, name="replay"),
    path("failed/<ulid:pk>/drop/", views.failed_reaction_drop, name="drop"),
    path("<ulid:pk>/", views.event, name="event"),
]

webhooks = [
    path("", webhook_views.endpoints, name="list"),
    path("<ulid:pk>/", webhook_views.deliveries, name="deliveries"),
    path("deliveries/<ulid:pk>/", webhook_views.delivery, name="delivery"),
    path("deliveries/<ulid:pk>/redeliver/", webhook_views.redeliver, name="redeliver"),
]

pages = [
    path("", views.overview, name="overview"),
    path("favicon.ico", RedirectView.as_view(url="/static/console/favicon.svg"), name="favicon"),
    path("login/", LoginView.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("runs/", include((runs, "runs"))),
    path("events/", include((events, "events"))),
    path("webhooks/", include((webhooks, "webhooks"))),
    path("", include("workers.urls")),
    path("", include("ledger.urls")),
    path("", include("gates.urls")),
    path("", include("costs.urls")),
    path("admin/", admin.site.urls),
]

urlpatterns = [
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("api/v1/", include(api)),
    path("", include("ledger.hooks")),
    *pages,
]
