"""The same jobs as background tasks, while the service's worker is killed: what it had not done is lost."""

from timesplit import loadgen


class BackgroundJobsUser(loadgen.JobUser):
    """Posts 200 pieces of work that run after their responses, and watches what becomes of them."""

    by_name = True
    kind = "background"
    path = "/background-jobs"
    count = 200
    patience = 8
