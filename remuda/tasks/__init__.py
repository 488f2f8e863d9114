"""What happens when: the Celery application, `celery -A remuda.tasks worker|beat|inspect|flower`."""

from remuda.tasks.app import app

__all__ = ["app"]
