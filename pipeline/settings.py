"""Every setting of Signalbox, read from the environment once, loud on nonsense.

`docs/operate.md` lists what may be set; a test keeps that list complete.
"""

import hashlib
import ipaddress
import logging
import os
import re
import tempfile
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
import structlog
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static

from pipeline import embedded

# Readers: one for each type. Each says what is wrong and what would be right.

READ: dict[str, str] = {}
"""Name and default of every variable that was read, for the test of docs/operate.md."""


def text(name: str, default: str = "") -> str:
    """The variable without surrounding blanks; an empty one counts as unset."""
    READ[name] = default
    return os.environ.get(name, "").strip() or default


def one_of(name: str, default: str, *allowed: str) -> str:
    """The variable, which must be one of `allowed`."""
    value = text(name, default)
    if value not in allowed:
        raise ImproperlyConfigured(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    return value


def switch(name: str, default: bool = False) -> bool:
    """The variable as a truth value."""
    value = text(name, "on" if default else "off").lower()
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"0", "false", "no", "off"}:
        return False
    raise ImproperlyConfigured(f"{name} is {value!r}; write on or off")


def whole(name: str, default: int, *, low: int = 1, high: int = 2**31 - 1) -> int:
    """The variable as a whole number between `low` and `high`."""
    value = text(name, str(default))
    if not re.fullmatch(r"-?[0-9]{1,12}", value) or not low <= int(value) <= high:
        raise ImproperlyConfigured(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
    return int(value)


def amount(name: str, default: str, *, low: str = "0", high: str = "1000000") -> Decimal:
    """The variable as an exact decimal number between `low` and `high`."""
    value = text(name, default)
    try:
        number = Decimal(value)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or not Decimal(low) <= number <= Decimal(high):
        raise ImproperlyConfigured(f"{name} is {value!r}; it must be a decimal number from {low} to {high}")
    return number


def words(name: str, default: str = "") -> list[str]:
    """The variable as a list, parted by commas."""
    return [word.strip() for word in text(name, default).split(",") if word.strip()]


def networks(name: str) -> tuple[str, ...]:
    """The variable as networks in CIDR form, parted by commas."""
    for word in words(name):
        try:
            ipaddress.ip_network(word)
        except ValueError as problem:
            raise ImproperlyConfigured(
                f"{name} names {word!r}; write networks such as 10.1.0.0/16: {problem}"
            ) from None
    return tuple(words(name))


def caches(name: str) -> dict[str, Path]:
    """The variable as named folders, name=/folder, parted by commas."""
    found: dict[str, Path] = {}
    for word in words(name):
        key, sign, folder = word.partition("=")
        if not sign or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", key) or not folder.startswith("/"):
            raise ImproperlyConfigured(f"{name} names {word!r}; write name=/folder, the name in small letters")
        found[key] = Path(folder)
    return found


def folders(name: str) -> list[Path]:
    """The variable as folders named from the root on, parted by colons."""
    found = [Path(part) for part in text(name).split(":") if part]
    for folder in found:
        if not folder.is_absolute() or ".." in folder.parts or len(folder.parts) < 2:
            raise ImproperlyConfigured(f"{name} names {str(folder)!r}; write folders from the root on, not the root")
    return found


def database(url: str) -> dict[str, Any]:
    """Django's settings for a PostgreSQL URL."""
    if urlsplit(url).scheme not in {"postgres", "postgresql"}:
        raise ImproperlyConfigured("DATABASE_URL must begin with postgres:// ; Signalbox runs on PostgreSQL only")
    read: dict[str, Any] = environ.Env.db_url_config(url)
    if not read.get("NAME"):
        raise ImproperlyConfigured("DATABASE_URL names no database; write postgres://user:password@host:5432/name")
    return read


# Where things are

BASE_DIR = Path(__file__).resolve().parent.parent
READ["SIGNALBOX_DATA"] = ".data"
DATA_DIR = embedded.data_directory(os.environ)
PLACE = embedded.place(DATA_DIR)

GATES_DIR = Path(
    text("SIGNALBOX_GATES_DIR")
    or Path(tempfile.gettempdir()) / f"signalbox-gates-{hashlib.sha256(str(DATA_DIR).encode()).hexdigest()[:12]}"
).absolute()
"""Where gates get their copies of a tree: never below a repository, whose configuration tools would find upward."""
READ["SIGNALBOX_GATES_DIR"] = "below the system's temporary directory"

SIGNALBOX_ROLE = one_of("SIGNALBOX_ROLE", "command", "web", "worker", "command", "migrate")
"""What this process is; `manage.py up` tells its children. It decides about connections and timeouts, nothing else."""

# Safety

SECRET_KEY = text("SECRET_KEY") or embedded.secret(DATA_DIR, "secret_key")
SIGNALBOX_PEPPER = text("SIGNALBOX_PEPPER") or embedded.secret(DATA_DIR, "pepper")
"""Mixed into the hash of every API key: a stolen table alone proves no key."""

if len(SECRET_KEY) < 32 or len(SIGNALBOX_PEPPER) < 32:
    raise ImproperlyConfigured("SECRET_KEY and SIGNALBOX_PEPPER must be random and have at least 32 characters")

DEBUG = switch("SIGNALBOX_DEBUG")
SIGNALBOX_PORT = whole("SIGNALBOX_PORT", 8000, high=65535)
SIGNALBOX_HTTPS = switch("SIGNALBOX_HTTPS")
"""On where a TLS proxy stands in front (or `check --deploy` runs): secure cookies, redirect, HSTS."""

ALLOWED_HOSTS = words("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
CSRF_TRUSTED_ORIGINS = words("CSRF_TRUSTED_ORIGINS")
for _origin in CSRF_TRUSTED_ORIGINS:
    if not _origin.startswith(("http://", "https://")):
        raise ImproperlyConfigured(
            f"CSRF_TRUSTED_ORIGINS holds {_origin!r}; write it with its scheme: https://{_origin}"
        )

SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SIGNALBOX_HTTPS
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if SIGNALBOX_HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = SIGNALBOX_HTTPS
# A load balancer asks these over plain HTTP.
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$"]
if switch("SIGNALBOX_TRUST_PROXY"):
    # Only behind a proxy that sets this header itself: anybody else could claim to have come by HTTPS.
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_REFERRER_POLICY = "same-origin"
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 3 * 1024 * 1024
"""The largest body of a request in bytes (413 above it): twice a log tail, and a generous diff."""

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "connect-src": ["'self'"],
        "form-action": ["'self'"],
        "base-uri": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
}
RELAXED_POLICY = {
    **CONTENT_SECURITY_POLICY["DIRECTIVES"],
    # Alpine, which Unfold builds its admin on, evaluates expressions; Swagger UI writes styles.
    "script-src": ["'self'", "'unsafe-eval'", "'unsafe-inline'"],
    "style-src": ["'self'", "'unsafe-inline'"],
    "font-src": ["'self'", "data:"],
    "worker-src": ["'self'", "blob:"],
}
RELAXED_POLICY_PREFIXES = ("/admin/", "/api/v1/docs/")

# The house

HOUSE_APPS = ["pipeline", "workers", "ledger", "gates", "costs"]

INSTALLED_APPS = [
    *HOUSE_APPS,
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "pgtrigger",
    "django_celery_beat",
    "django_htmx",
    "csp",
]

MIDDLEWARE = [
    "pipeline.middleware.RequestIdMiddleware",
    "pipeline.hotpath.HotPathMiddleware",
    "pipeline.middleware.BodyLengthMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "pipeline.content_policy.ContentPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "pipeline.middleware.StorableMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

ROOT_URLCONF = "pipeline.urls"
WSGI_APPLICATION = "pipeline.wsgi.application"
AUTH_USER_MODEL = "pipeline.User"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGIN_URL = "/login/"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/login/"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "pipeline.pages.frame",
            ],
        },
    }
]

LANGUAGE_CODE = "en"
USE_I18N = USE_TZ = True
TIME_ZONE = "UTC"
LOCALE_PATHS = [BASE_DIR / "locale"]

STATIC_URL = "/static/"
STATIC_ROOT = DATA_DIR / "static"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "pipeline.storage.StaticStorage"},
}
WHITENOISE_USE_FINDERS = DEBUG

# The database

SIGNALBOX_THREADS = whole("SIGNALBOX_THREADS", 8, high=64)
"""How many requests one web process answers at the same time; its pool holds as many connections."""

_timeouts = {
    "statement_timeout": "15s",
    "lock_timeout": "3s",
    "idle_in_transaction_session_timeout": "10s",
    # The statements of the hot path are planned once: each of them reads by key or from one index, whatever is asked.
    "plan_cache_mode": "force_generic_plan",
}
if SIGNALBOX_ROLE == "migrate":
    # A migration may run long, but it waits 2 s for a lock at most: everybody else would queue up behind it.
    _timeouts |= {"statement_timeout": "0", "lock_timeout": "2s", "idle_in_transaction_session_timeout": "0"}

DATABASE_URL = text("DATABASE_URL")
DATABASES: dict[str, dict[str, Any]] = {
    "default": database(DATABASE_URL)
    if DATABASE_URL
    else {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": embedded.DATABASE,
        "USER": embedded.ROLE,
        "HOST": str(PLACE.postgres_sockets),
        "PORT": "5432",
    }
}
_default = DATABASES["default"]
_default["ENGINE"] = "django.db.backends.postgresql"
_default["OPTIONS"] = {
    **_default.get("OPTIONS", {}),
    "application_name": f"signalbox-{SIGNALBOX_ROLE}",
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "options": " ".join(f"-c {name}={value}" for name, value in _timeouts.items()),
}
if SIGNALBOX_ROLE == "web":
    _default["CONN_MAX_AGE"] = 0
    _default["OPTIONS"]["pool"] = {"min_size": 1, "max_size": SIGNALBOX_THREADS + 4, "timeout": 5, "max_lifetime": 1800}
else:
    # Celery closes a pool after every task: 55 tasks/s instead of 215 (docs/decisions/0001).
    _default["CONN_MAX_AGE"] = 600
_default["CONN_HEALTH_CHECKS"] = True

# Celery: a message wakes somebody, the database says what to do. Losing one delays work and loses none.

CELERY_BROKER_URL = text("CELERY_BROKER_URL") or PLACE.broker_url
if urlsplit(CELERY_BROKER_URL).scheme not in {"redis", "rediss", "redis+socket", "memory"}:
    raise ImproperlyConfigured("CELERY_BROKER_URL must begin with redis://, rediss:// or redis+socket://")
CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = {
    # Above the longest task (a gate at its limit with its re-runs): an earlier redelivery would run it twice.
    "visibility_timeout": 3 * 3600,
    "unacked_restore_throttle": 1,
    "socket_timeout": 1.0,
    "socket_connect_timeout": 1.0,
    # One try: whoever publishes waits for a browser or an agent, and the sweep finds what was not published.
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0,
    "interval_max": 0,
}
CELERY_BROKER_CONNECTION_TIMEOUT = 1.0
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_TASK_PUBLISH_RETRY = False
CELERY_TASK_SERIALIZER = CELERY_RESULT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_TRACK_STARTED = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_MAX_TASKS_PER_CHILD = 1000
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 10.0
CELERY_WORKER_ENABLE_SOFT_SHUTDOWN_ON_IDLE = False
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_TASK_DEFAULT_QUEUE = "celery"
CELERY_TASK_ROUTES = {
    "gates.tasks.*": {"queue": "gates"},
    # What waits for hosts outside, a minute at a time, keeps nothing else waiting.
    "pipeline.tasks.deliver": {"queue": "webhooks"},
    "pipeline.tasks.notify": {"queue": "webhooks"},
}
CELERY_TIMEZONE = "UTC"
CELERY_ENABLE_UTC = True
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 1
# Not one of Celery's own names: its Django fixup reads it to keep a connection for that many tasks.
CELERY_DB_REUSE_MAX = 50
DJANGO_CELERY_BEAT_TZ_AWARE = True

# The API

REST_FRAMEWORK = {
    "EXCEPTION_HANDLER": "pipeline.problems.exception_handler",
    "DEFAULT_AUTHENTICATION_CLASSES": ["pipeline.auth.KeyAuthentication", "pipeline.auth.BrowserAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["pipeline.auth.HasRole"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "pipeline.openapi.ApiSchema",
    "DEFAULT_VERSIONING_CLASS": None,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
    "COERCE_DECIMAL_TO_STRING": True,
}

SPECTACULAR_SETTINGS = {
    "TITLE": "Signalbox",
    "DESCRIPTION": "Everything a program does with Signalbox: runs, workers, patches, gates and what they cost.",
    "VERSION": "1.0.0",
    "OAS_VERSION": "3.1.1",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "SERVE_INCLUDE_SCHEMA": False,
    "COMPONENT_SPLIT_REQUEST": True,
    "POSTPROCESSING_HOOKS": ["pipeline.openapi.finish", "costs.openapi.add_otlp"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
}

# Logs: one JSON object a line, or coloured words on a terminal; the request id is bound by the middleware.

SIGNALBOX_LOG = one_of("SIGNALBOX_LOG", "console" if os.isatty(2) else "json", "console", "json")
READ["SIGNALBOX_LOG"] = "json, console on a terminal"


def _without_noise(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
    # uvicorn repeats its message in colour, Django hands over the whole request.
    event.pop("color_message", None)
    event.pop("request", None)
    return event


_shared_processors: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
structlog.configure(
    processors=[*_shared_processors, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=True,
)
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "structured": {
            "()": structlog.stdlib.ProcessorFormatter,
            "foreign_pre_chain": [*_shared_processors, structlog.stdlib.ExtraAdder(), _without_noise],
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer(colors=os.isatty(2)),
            ]
            if SIGNALBOX_LOG == "console"
            else [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "structured"}},
    "root": {"handlers": ["stderr"], "level": one_of("SIGNALBOX_LOG_LEVEL", "INFO", *logging.getLevelNamesMapping())},
    "loggers": {
        # Django's and uvicorn's own handlers would write every line twice, in another form.
        "django": {"handlers": [], "level": "INFO", "propagate": True},
        "django.server": {"handlers": [], "propagate": True},
        "uvicorn": {"handlers": [], "level": "INFO", "propagate": True},
        "uvicorn.error": {"handlers": [], "level": "INFO", "propagate": True},
        "uvicorn.access": {"handlers": [], "propagate": False},
        "celery.app.trace": {"level": "WARNING"},
        "celery.beat": {"level": "WARNING"},
        "celery.worker.strategy": {"level": "WARNING"},
    },
}

# The admin wears the console's accent: lightness, chroma and hue of one blue, from light to dark.
_BLUES = {
    "50": "97% .014 254.604",
    "100": "93.2% .032 255.585",
    "200": "88.2% .059 254.128",
    "300": "80.9% .105 251.813",
    "400": "70.7% .165 254.624",
    "500": "62.3% .214 259.815",
    "600": "54.6% .245 262.881",
    "700": "48.8% .243 264.376",
    "800": "42.4% .199 265.638",
    "900": "37.9% .146 265.522",
    "950": "28.2% .091 267.935",
}
UNFOLD = {
    "SITE_TITLE": "Signalbox",
    "SITE_HEADER": "Signalbox",
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "STYLES": [lambda request: static("console/admin.css")],
    "COLORS": {"primary": {shade: f"oklch({blue})" for shade, blue in _BLUES.items()}},
}

# The default numbers of the domain. A name is the same here, in the environment and in docs/operate.md.

SIGNALBOX_HEARTBEAT_INTERVAL_SECONDS = whole("SIGNALBOX_HEARTBEAT_INTERVAL_SECONDS", 15, high=3600)
SIGNALBOX_LEASE_SECONDS = whole("SIGNALBOX_LEASE_SECONDS", 60, low=10, high=24 * 3600)
SIGNALBOX_STALL_SECONDS = whole("SIGNALBOX_STALL_SECONDS", 600)
SIGNALBOX_STALL_IN_TOOL_CALL_SECONDS = whole("SIGNALBOX_STALL_IN_TOOL_CALL_SECONDS", 3600)
SIGNALBOX_IDLE_SILENCE_SECONDS = whole("SIGNALBOX_IDLE_SILENCE_SECONDS", 300)
SIGNALBOX_SWEEP_SECONDS = whole("SIGNALBOX_SWEEP_SECONDS", 5, high=3600)
SIGNALBOX_STOP_TERM_SECONDS = whole("SIGNALBOX_STOP_TERM_SECONDS", 15, high=3600)
SIGNALBOX_STOP_KILL_SECONDS = whole("SIGNALBOX_STOP_KILL_SECONDS", 25, high=3600)
SIGNALBOX_TASK_TIMEOUT_SECONDS = whole("SIGNALBOX_TASK_TIMEOUT_SECONDS", 1800)
SIGNALBOX_TASK_MAX_ATTEMPTS = whole("SIGNALBOX_TASK_MAX_ATTEMPTS", 3, high=100)
SIGNALBOX_TASK_MAX_INFRA_RETRIES = whole("SIGNALBOX_TASK_MAX_INFRA_RETRIES", 3, low=0, high=100)
SIGNALBOX_TASK_MAX_REPAIRS = whole("SIGNALBOX_TASK_MAX_REPAIRS", 2, low=0, high=100)
SIGNALBOX_TOOL_TIMEOUT_SECONDS = whole("SIGNALBOX_TOOL_TIMEOUT_SECONDS", 600)
SIGNALBOX_TOOL_MAX_PARALLEL = whole("SIGNALBOX_TOOL_MAX_PARALLEL", 1, high=10_000)
SIGNALBOX_WORKSTREAM_MAX_PARALLEL = whole("SIGNALBOX_WORKSTREAM_MAX_PARALLEL", 5, high=10_000)
SIGNALBOX_OUTPUT_BYTES = whole("SIGNALBOX_OUTPUT_BYTES", 1024 * 1024, low=1024, high=64 * 1024 * 1024)
SIGNALBOX_FINISHED_WORKER_DAYS = whole("SIGNALBOX_FINISHED_WORKER_DAYS", 7, high=3650)
SIGNALBOX_BREAKER_THRESHOLD = whole("SIGNALBOX_BREAKER_THRESHOLD", 5, high=1000)
SIGNALBOX_BREAKER_RECOVERY_SECONDS = whole("SIGNALBOX_BREAKER_RECOVERY_SECONDS", 60)
SIGNALBOX_BREAKER_PROBES = whole("SIGNALBOX_BREAKER_PROBES", 1, high=100)
SIGNALBOX_BREAKER_SUCCESSES = whole("SIGNALBOX_BREAKER_SUCCESSES", 1, high=100)
SIGNALBOX_RETRY_BASE_SECONDS = whole("SIGNALBOX_RETRY_BASE_SECONDS", 1)
SIGNALBOX_RETRY_FACTOR = whole("SIGNALBOX_RETRY_FACTOR", 2, high=100)
SIGNALBOX_RETRY_CAP_SECONDS = whole("SIGNALBOX_RETRY_CAP_SECONDS", 60)
SIGNALBOX_SAME_ERROR_TRIPS_AT = whole("SIGNALBOX_SAME_ERROR_TRIPS_AT", 3, high=1000)
SIGNALBOX_MAX_APPLY_ATTEMPTS = whole("SIGNALBOX_MAX_APPLY_ATTEMPTS", 3, high=100)
SIGNALBOX_OSCILLATION_WINDOW = whole("SIGNALBOX_OSCILLATION_WINDOW", 5, low=2, high=1000)
SIGNALBOX_OSCILLATION_THRESHOLD = whole("SIGNALBOX_OSCILLATION_THRESHOLD", 3, low=2, high=1000)
SIGNALBOX_MERGE_WINDOW_START = whole("SIGNALBOX_MERGE_WINDOW_START", 2, high=100)
SIGNALBOX_MERGE_WINDOW_FLOOR = whole("SIGNALBOX_MERGE_WINDOW_FLOOR", 1, high=100)
SIGNALBOX_MERGE_WINDOW_CEILING = whole("SIGNALBOX_MERGE_WINDOW_CEILING", 4, high=100)
SIGNALBOX_HEAD_OF_LINE_SECONDS = whole("SIGNALBOX_HEAD_OF_LINE_SECONDS", 3600)
SIGNALBOX_GATE_TIMEOUT_SECONDS = whole("SIGNALBOX_GATE_TIMEOUT_SECONDS", 900, high=2 * 3600)
SIGNALBOX_GATE_INFRA_RERUNS = whole("SIGNALBOX_GATE_INFRA_RERUNS", 2, low=0, high=100)
# What a gate's command may read of this machine beside /usr and our interpreter: folders, parted by colons; and folders
# that are shown read-only to the gates that name them: name=/folder, parted by commas (docs/sandbox.md).
SIGNALBOX_GATE_READONLY = folders("SIGNALBOX_GATE_READONLY")
SIGNALBOX_GATE_CACHES = caches("SIGNALBOX_GATE_CACHES")
# The first of 64 users that commands run as where the service is root (0: none), and the control group below which each
# run gets one of its own.
SIGNALBOX_GATE_UID = whole("SIGNALBOX_GATE_UID", 60800, low=0, high=2**31)
SIGNALBOX_GATE_CGROUP = text("SIGNALBOX_GATE_CGROUP")
SIGNALBOX_QUARANTINE_DAYS = whole("SIGNALBOX_QUARANTINE_DAYS", 14, high=3650)
SIGNALBOX_BUDGET_WARNING_RATIO = amount("SIGNALBOX_BUDGET_WARNING_RATIO", "0.80", low="0.01", high="1")
SIGNALBOX_DEFAULT_RESERVATION_USD = amount("SIGNALBOX_DEFAULT_RESERVATION_USD", "1.00")
SIGNALBOX_PRICE_CEILING_INPUT_USD = amount("SIGNALBOX_PRICE_CEILING_INPUT_USD", "15")
SIGNALBOX_PRICE_CEILING_OUTPUT_USD = amount("SIGNALBOX_PRICE_CEILING_OUTPUT_USD", "75")
# Tables as JSON (docs/costs.md); read, and complained of, by the app that they are for.
SIGNALBOX_UNIT_RATES = text("SIGNALBOX_UNIT_RATES")
SIGNALBOX_EXCHANGE_RATES = text("SIGNALBOX_EXCHANGE_RATES")
SIGNALBOX_LIST_LIMIT = whole("SIGNALBOX_LIST_LIMIT", 50, high=500)
SIGNALBOX_EVENTS_LIMIT = whole("SIGNALBOX_EVENTS_LIMIT", 100, high=500)
# Tries of a reaction that crashes, the delay doubling from 2 s to an hour: twelve are about two and a half hours.
SIGNALBOX_REACTION_ATTEMPTS = whole("SIGNALBOX_REACTION_ATTEMPTS", 12, low=1, high=100)
# Calls of the API by one key or person: a bucket of so many, filled again at this rate; 0 sets no limit.
SIGNALBOX_CALLS_PER_SECOND = whole("SIGNALBOX_CALLS_PER_SECOND", 200, low=0, high=1_000_000)
SIGNALBOX_CALLS_AT_ONCE = whole("SIGNALBOX_CALLS_AT_ONCE", 1000, high=1_000_000)
SIGNALBOX_URL = text("SIGNALBOX_URL", "").rstrip("/")
"""Where people reach the console, such as https://signalbox.example.org: for links in what is sent out; empty: none."""
SIGNALBOX_NOTIFY_MAX_FAILURES = whole("SIGNALBOX_NOTIFY_MAX_FAILURES", 20, high=1000)
# The event stream: a comment keeps a connection that is silent, and asks again who reads; a connection ends after this.
SIGNALBOX_STREAM_KEEPALIVE_SECONDS = whole("SIGNALBOX_STREAM_KEEPALIVE_SECONDS", 15, high=300)
SIGNALBOX_STREAM_SECONDS = whole("SIGNALBOX_STREAM_SECONDS", 900, high=86_400)
SIGNALBOX_STREAMS_PER_PRINCIPAL = whole("SIGNALBOX_STREAMS_PER_PRINCIPAL", 10, high=10_000)
SIGNALBOX_STREAM_BUFFER = whole("SIGNALBOX_STREAM_BUFFER", 1000, high=100_000)
# Webhooks go to https addresses outside; networks of one's own are named one by one: 10.1.0.0/16, fd00:1::/64.
SIGNALBOX_WEBHOOK_HTTP = switch("SIGNALBOX_WEBHOOK_HTTP")
SIGNALBOX_WEBHOOK_ALLOW_NETS = networks("SIGNALBOX_WEBHOOK_ALLOW_NETS")
SIGNALBOX_WEBHOOK_THREADS = whole("SIGNALBOX_WEBHOOK_THREADS", 32, high=500)
SIGNALBOX_WEBHOOK_DEAD_IN_ROW = whole("SIGNALBOX_WEBHOOK_DEAD_IN_ROW", 3, high=1000)
SIGNALBOX_WEBHOOK_FAILING_DAYS = whole("SIGNALBOX_WEBHOOK_FAILING_DAYS", 5, high=365)
SIGNALBOX_DELIVERY_KEEP_DAYS = whole("SIGNALBOX_DELIVERY_KEEP_DAYS", 30, high=3650)
# Separate clocks: events, logs. 0 keeps for ever. Money is never dropped.
SIGNALBOX_KEEP_EVENTS_MONTHS = whole("SIGNALBOX_KEEP_EVENTS_MONTHS", 0, low=0, high=1200)
SIGNALBOX_KEEP_LOGS_DAYS = whole("SIGNALBOX_KEEP_LOGS_DAYS", 0, low=0, high=36_500)
SIGNALBOX_AUDIT_REPOSITORY = text("SIGNALBOX_AUDIT_REPOSITORY")
SIGNALBOX_ANCHOR_REMOTE = text("SIGNALBOX_ANCHOR_REMOTE")
SIGNALBOX_ANCHOR_FILE = text("SIGNALBOX_ANCHOR_FILE")
# Mirrors over HTTP: git processes at once, seconds and bytes of one request.
SIGNALBOX_MIRROR_READERS = whole("SIGNALBOX_MIRROR_READERS", 8, high=200)
SIGNALBOX_MIRROR_SECONDS = whole("SIGNALBOX_MIRROR_SECONDS", 900, high=86_400)
SIGNALBOX_MIRROR_REQUEST_BYTES = whole("SIGNALBOX_MIRROR_REQUEST_BYTES", 2 * 1024 * 1024, low=65_536)
# A rewind: patches in one plan, and commits looked back at for the lines that are in the way.
SIGNALBOX_REWIND_LIMIT = whole("SIGNALBOX_REWIND_LIMIT", 100, high=10_000)
SIGNALBOX_REWIND_COMMITS = whole("SIGNALBOX_REWIND_COMMITS", 5000, high=1_000_000)
SIGNALBOX_OVERRIDE_DAYS = whole("SIGNALBOX_OVERRIDE_DAYS", 7, high=365)
SIGNALBOX_OVERRIDE_MAX_DAYS = whole("SIGNALBOX_OVERRIDE_MAX_DAYS", 30, high=365)
SIGNALBOX_REPLAY_MAX = whole("SIGNALBOX_REPLAY_MAX", 5000, high=1_000_000)
# Remotes: credentials are files of this folder, or environment variables SIGNALBOX_CREDENTIAL_*.
SIGNALBOX_CREDENTIALS_DIR = text("SIGNALBOX_CREDENTIALS_DIR")
SIGNALBOX_REMOTE_PROTOCOLS = words("SIGNALBOX_REMOTE_PROTOCOLS", "file,https,ssh")
SIGNALBOX_REMOTE_CA_FILE = text("SIGNALBOX_REMOTE_CA_FILE")
SIGNALBOX_STALE_LOCK_SECONDS = whole("SIGNALBOX_STALE_LOCK_SECONDS", 60, high=86_400)
