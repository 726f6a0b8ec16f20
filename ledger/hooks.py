"""Addresses that hosts outside call by themselves, outside the API: they sign, and hold no key of ours."""

from django.urls import path

from ledger.api.remotes import pushed

urlpatterns = [path("hooks/push/<str:key>/", pushed, name="pushed")]
