"""How the upstream service behaves: how long it takes, and how often it fails or hangs."""

import math
import random
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Behaviour(BaseModel):
    """How the upstream service behaves.

    Attributes:
        distribution: how the time that an answer takes is distributed.
        mean: its mean, in seconds.
        sigma: standard deviation of its logarithm (lognormal only).
        failure_rate: share of requests answered with 503.
        hang_rate: share of requests never answered.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    distribution: Literal["fixed", "exponential", "lognormal"] = "fixed"
    mean: Annotated[float, Field(ge=0, le=30, allow_inf_nan=False)] = 0.02
    sigma: Annotated[float, Field(ge=0, le=3, allow_inf_nan=False)] = 0.5
    failure_rate: Share = 0.0
    hang_rate: Share = 0.0

    def draw_delay(self, source: random.Random) -> float:
        """Draw how long an answer takes, in seconds."""
        if self.mean == 0 or self.distribution == "fixed":
            return self.mean
        if self.distribution == "exponential":
            return source.expovariate(1 / self.mean)
        # The mean of a lognormal variable is exp(mu + sigma² / 2).
        return source.lognormvariate(math.log(self.mean) - self.sigma**2 / 2, self.sigma)


class UpstreamSettings(BaseSettings, Behaviour):
    """The behaviour that the upstream service starts with, from the environment; see docs/settings.md."""

    model_config = SettingsConfigDict(
        env_prefix="UPSTREAM_", env_ignore_empty=True, frozen=True, extra="ignore"
    )
