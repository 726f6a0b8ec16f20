"""Table of contents: every address of the console and of the API."""

from django.contrib import admin
from django.urls import path

from pipeline import health

urlpatterns = [
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("admin/", admin.site.urls),
]
