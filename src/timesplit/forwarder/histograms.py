"""All requests as OTLP metrics: one exponential histogram for each part, route and method, from the first on.

Cumulative, at one fixed scale, so that adding a batch is counting: numpy's bincount, no Python per request.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Metric,
)

from timesplit.parts import SERVER_PARTS

SCALE: Final = 3  # buckets 9 % wide: a quantile is right to 4.4 %
LOWEST: Final = -17 * (1 << SCALE)  # 2^-17 s, 7.6 µs; what is shorter counts as zero
BUCKETS: Final = 24 * (1 << SCALE)  # up to 2^7 s
PART_DURATION: Final = "timesplit.request.part.duration"

Numbers = npt.NDArray[np.int64]
Key = tuple[str, str, str]  # part, route, method


class Histogram:
    """Counts of durations."""

    def __init__(self) -> None:
        self.buckets: Numbers = np.zeros(BUCKETS, np.int64)
        self.zero = 0
        self.count = 0
        self.sum_ns = 0

    def add(self, durations: Numbers) -> None:
        """Count durations in nanoseconds."""
        self.count += len(durations)
        self.sum_ns += int(durations.sum())
        index = buckets(durations)
        self.zero += int((index < 0).sum())
        self.buckets += np.bincount(index[index >= 0], minlength=BUCKETS)


def buckets(durations: Numbers) -> Numbers:
    """Return the bucket of each duration in nanoseconds, counted from LOWEST; -1 for what counts as zero.

    Bucket i holds (base^i, base^(i+1)] seconds with base = 2^(2^-SCALE), as OpenTelemetry's data model has it.
    """
    seconds = np.maximum(durations, 1) / 1e9
    index = np.ceil(np.log2(seconds) * (1 << SCALE)).astype(np.int64) - 1 - LOWEST
    clipped: Numbers = np.clip(index, -1, BUCKETS - 1)
    return clipped


class PartHistograms:
    """A service's histograms, one for each part, route and method."""

    def __init__(self, began_utc: int) -> None:
        self._began = began_utc
        self._histograms: defaultdict[Key, Histogram] = defaultdict(Histogram)

    def add(self, rows: pa.Table) -> None:
        """Count the parts of rows of server/; unknown parts are left out, 0 is counted."""
        routes = pc.binary_join_element_wise(
            pc.fill_null(rows["http_route"], ""), pc.fill_null(rows["method"], ""), "\n"
        ).combine_chunks()
        encoded = routes.dictionary_encode()
        which, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        for part in SERVER_PARTS:
            known = pc.is_valid(rows[part.column]).to_numpy()
            durations = pc.fill_null(rows[part.column], 0).to_numpy()
            for code, name in enumerate(names):
                route, _, method = name.partition("\n")
                chosen = durations[(which == code) & known]
                if len(chosen):
                    self._histograms[part.name, route, method].add(chosen)

    def metrics(self, now_utc: int) -> Iterator[Metric]:
        """Yield the metrics: ours for every part, and the standard name too where one exists."""
        yield _metric(PART_DURATION, self._points(self._histograms.items(), now_utc))
        for standard in sorted({part.metric for part in SERVER_PARTS if part.metric}):
            names = {part.name for part in SERVER_PARTS if part.metric == standard}
            of_it = [(key, found) for key, found in self._histograms.items() if key[0] in names]
            yield _metric(standard, self._points(of_it, now_utc))

    def _points(
        self, histograms: Iterable[tuple[Key, Histogram]], now_utc: int
    ) -> list[ExponentialHistogramDataPoint]:
        return [_point(key, found, self._began, now_utc) for key, found in histograms]


def _metric(name: str, points: list[ExponentialHistogramDataPoint]) -> Metric:
    cumulative = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    data = ExponentialHistogram(data_points=points, aggregation_temporality=cumulative)
    return Metric(name=name, unit="s", exponential_histogram=data)


def _point(key: Key, found: Histogram, began: int, now: int) -> ExponentialHistogramDataPoint:
    used = np.flatnonzero(found.buckets)
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, -1)
    part, route, method = key
    attributes: dict[str, Any] = {
        "timesplit.part": part,
        "http.route": route,
        "http.request.method": method,
    }
    return ExponentialHistogramDataPoint(
        attributes=[KeyValue(key=k, value=AnyValue(string_value=v)) for k, v in attributes.items() if v],
        start_time_unix_nano=began,
        time_unix_nano=now,
        count=found.count,
        sum=found.sum_ns / 1e9,
        scale=SCALE,
        zero_count=found.zero,
        zero_threshold=2.0 ** (LOWEST / (1 << SCALE)),
        positive=ExponentialHistogramDataPoint.Buckets(
            offset=LOWEST + first, bucket_counts=found.buckets[first : last + 1].tolist()
        ),
    )
