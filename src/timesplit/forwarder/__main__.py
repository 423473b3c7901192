"""`python -m timesplit.forwarder`: takes the workers' spans and journals, writes run folders, passes spans on."""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from timesplit.errors import TimesplitError
from timesplit.forwarder.process import Forwarder
from timesplit.instrumentation.journal import journal_folder

log = logging.getLogger("timesplit.forwarder")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the forwarder until SIGTERM or SIGINT, and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="timesplit forwarder: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request
    options = _options(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        forwarder = Forwarder(options.host, options.port, options.runs, options.journals)
    except TimesplitError as error:
        log.error("%s", error)
        return error.exit_code
    log.info("listens on http://%s:%d, writes %s", options.host, forwarder.port, options.runs)
    forwarder.run(stop)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m timesplit.forwarder", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, required=True, help="port to listen on; 0 takes a free one")
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="where run folders lie")
    parser.add_argument(
        "--journals", type=Path, default=journal_folder(), metavar="DIR", help="where workers' journals lie"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
