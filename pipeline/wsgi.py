"""Django's WSGI application, for servers that speak only WSGI; it serves everything but the raw ASGI routes."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "pipeline.settings")

application = get_wsgi_application()
