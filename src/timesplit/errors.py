"""The errors that timesplit raises, and the exit code of each.

TimesplitError                  something is wrong; the message says what, where and what to do
├── UsageError          exit 2  the command, its options or the environment cannot work as given
│   └── ScenarioError   exit 2  a scenario or locustfile is unknown, broken or does not fit
├── RunFolderError      exit 2  a run folder is missing, cut short or of another schema version
├── TargetUnreachable   exit 2  nothing answers at the service's address
├── StartError          exit 2  a process of the lab did not come up; its last output is in the message
└── InvalidRun          exit 3  the measurement cannot be believed
"""


class TimesplitError(Exception):
    """Base of all errors that carry one clear message for the user."""

    exit_code = 2


class UsageError(TimesplitError):
    """The command, its options or the environment cannot work as given."""


class ScenarioError(UsageError):
    """A scenario or locustfile is unknown, broken or does not fit the service."""


class RunFolderError(TimesplitError):
    """A run folder is missing, cut short or of another schema version."""


class TargetUnreachable(TimesplitError):
    """Nothing answers at the address of the service under test."""


class StartError(TimesplitError):
    """A process of the lab did not come up."""


class InvalidRun(TimesplitError):
    """The measurement cannot be believed: neither a pass nor a fail."""

    exit_code = 3
