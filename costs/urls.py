"""Addresses of the costs' pages."""

from django.urls import path

from costs import views

app_name = "costs"
urlpatterns = [path("costs/", views.costs, name="list")]
