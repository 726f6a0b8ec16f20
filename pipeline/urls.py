"""Table of contents: every address of the console and of the API."""

from django.contrib import admin
from django.urls import include, path

from pipeline import health

handler400 = "pipeline.problems.bad_request"
handler403 = "pipeline.problems.denied"
handler404 = "pipeline.problems.not_found"
handler500 = "pipeline.problems.server_error"

api = [
    path("", include("pipeline.api")),
]

pages = [
    path("admin/", admin.site.urls),
]

urlpatterns = [
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("api/v1/", include(api)),
    *pages,
]
