"""Addresses of the workers' pages."""

from django.urls import path

from workers import views

app_name = "workers"
urlpatterns = [
    path("workers/", views.workers, name="list"),
    path("workers/<ulid:pk>/", views.worker, name="worker"),
    path("workers/<ulid:pk>/pause/", views.worker_pause, name="pause"),
    path("workers/<ulid:pk>/resume/", views.worker_resume, name="resume"),
    path("workers/<ulid:pk>/drain/", views.worker_drain, name="drain"),
    path("workers/<ulid:pk>/stop/", views.worker_stop, name="stop"),
    path("workers/<ulid:pk>/crash/", views.worker_crash, name="crash"),
]
