"""Who does the work: workers, and the leases by which they hold their tasks."""

from workers.models.lease import Lease
from workers.models.worker import StaleClaim, Worker, WorkerFinished, check_config

__all__ = ["Lease", "StaleClaim", "Worker", "WorkerFinished", "check_config"]
