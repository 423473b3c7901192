"""Serve an application in this process with the agent armed: `python -m tests.truth.serve SERVER APP PORT …`."""

import json
import sys

import fastapi  # noqa: F401  # imported before arming: the agent arms what is there

from timesplit.instrumentation.agent import Agent


def main(server: str, loop: str, http: str, workers: str, port: str, app: str, options: str) -> None:
    """Arm, and become the server."""
    Agent().arm()
    if server == "uvicorn":
        import uvicorn

        more = json.loads(options)
        uvicorn.run(app, port=int(port), loop=loop, http=http, log_level="warning", access_log=False, **more)
    else:
        from gunicorn.app.wsgiapp import run  # type: ignore[import-untyped]  # ships no types

        # `control-socket` would be a file in the working folder.
        settings = ["--bind", f"127.0.0.1:{port}", "--workers", workers, "--no-control-socket"]
        settings += ["--worker-class", http, "--log-level", "warning", "--timeout", "3"]
        if http == "asgi":
            settings += ["--asgi-loop", loop]
        sys.argv = ["gunicorn", *settings, app]
        run()


if __name__ == "__main__":
    main(*sys.argv[1:])
