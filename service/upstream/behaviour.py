"""How the upstream service behaves: how long it takes, and how often it fails or hangs."""

import math
import random
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def _bounded(default: float, most: float, description: str) -> Any:
    return Field(default, ge=0, le=most, allow_inf_nan=False, description=description)


class Behaviour(BaseModel):
    """How the upstream service behaves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    distribution: Literal["fixed", "exponential", "lognormal"] = Field(
        "fixed", description="how an answer's delay is distributed: `fixed`, `exponential` or `lognormal`"
    )
    mean: float = _bounded(0.02, 30, "mean of that delay, in seconds")
    sigma: float = _bounded(0.5, 3, "standard deviation of the delay's logarithm (`lognormal` only)")
    failure_rate: float = _bounded(0, 1, "share of requests that are answered with 503")
    hang_rate: float = _bounded(0, 1, "share of requests that are never answered")

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
