"""How gunicorn serves the demo service: `gunicorn -c deploy/gunicorn.conf.py 'service.app:create_app()'`."""

import faulthandler
import gc
from pathlib import Path

from uvicorn_worker import UvicornWorker

from service.settings import Settings, read_settings

# Read here as well, so that wrong settings stop the start once, and not each worker again and again.
_settings = read_settings(Settings)

worker_class = "uvicorn_worker.UvicornWorker"
workers = _settings.web_concurrency
backlog = _settings.backlog
keepalive = _settings.keep_alive
timeout = _settings.worker_timeout
graceful_timeout = _settings.graceful_timeout
accesslog = None
# Workers touch a file as their sign of life; on a slow disk that alone can look like a hang.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None
# gunicorn's control socket would be a file in the project.
control_socket_disable = True


def post_worker_init(worker: UvicornWorker) -> None:
    """Set what gunicorn's own settings cannot tell a uvicorn worker."""
    # Only here: earlier, the worker would still reset its signal handlers, and die of a hang without a trace.
    faulthandler.enable()
    # What imports have made stays: without this, each full collection goes through all of it, and the event loop
    # stands still for some 100 ms in the middle of a burst.
    gc.collect()
    gc.freeze()
    config = worker.config
    config.loop, config.http, config.ws = "uvloop", "httptools", "websockets-sansio"
    config.access_log = False
    config.ws_max_size = _settings.max_body_size
    # uvicorn waits for ever unless told; some time is left for the end of the lifespan before gunicorn kills.
    config.timeout_graceful_shutdown = max(1, graceful_timeout - 5)
