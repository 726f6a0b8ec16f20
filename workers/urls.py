"""Addresses of the workers' pages."""

from django.urls import path

from workers import views

app_name = "workers"
urlpatterns = [
    path("workers/", views.workers, name="list"),
    path("workers/<ulid:pk>/", views.worker, name="worker"),
    path("workers/<ulid:pk>/assign/", views.give, name="assign"),
    *[path(f"workers/<ulid:pk>/{button}/", views.press, {"button": button}, name=button) for button in views.BUTTONS],
]
