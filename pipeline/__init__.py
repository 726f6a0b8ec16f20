"""The ground floor of Signalbox and its Django project: projects, runs, tasks, events, and everything that all apps
share.

Nothing is imported here, so that pure modules and `pipeline.embedded` load without Django and Celery; the Celery app
is loaded by `PipelineConfig.ready()`.
"""
