"""`python -m service.upstream --port N` runs the upstream service."""

import argparse

import uvicorn

from service.settings import read_settings
from service.upstream.app import create_upstream
from service.upstream.behaviour import UpstreamSettings


def main() -> None:
    """Run the upstream service."""
    parser = argparse.ArgumentParser(prog="python -m service.upstream", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    app = create_upstream(read_settings(UpstreamSettings))
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        workers=1,  # uvicorn would take WEB_CONCURRENCY, which is meant for the service
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,  # longer than its clients keep an idle connection
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
