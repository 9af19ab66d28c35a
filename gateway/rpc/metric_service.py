"""MetricService: the write and the read half under one name.

Requests of streams stay bytes (`wire` reads them without building messages), and
so do the responses of ReadMetrics.
"""

from typing import Final, Protocol

import grpc
from headrace.v1 import metric_service_pb2 as pb

from gateway.rpc.metric_write import MetricWriteService

_NAME: Final = "headrace.v1.MetricService"


class MetricReads(Protocol):
    """The read half; see `metric_read`."""

    def read_metrics(self, request: pb.ReadMetricsRequest, context: object) -> object:
        """Yield the serialized responses."""

    async def list_series(
        self, request: pb.ListSeriesRequest, context: object
    ) -> pb.ListSeriesResponse:
        """Return a page of series."""


def metric_handlers(writes: MetricWriteService, reads: MetricReads) -> grpc.GenericRpcHandler:
    """Return the handlers of all methods."""
    return grpc.method_handlers_generic_handler(
        _NAME,
        {
            "WriteMetrics": grpc.stream_stream_rpc_method_handler(
                writes.write_metrics,
                None,
                pb.WriteMetricsResponse.SerializeToString,
            ),
            "ImportMetrics": grpc.stream_unary_rpc_method_handler(
                writes.import_metrics,
                None,
                pb.ImportMetricsResponse.SerializeToString,
            ),
            "ReadMetrics": grpc.unary_stream_rpc_method_handler(
                reads.read_metrics,
                pb.ReadMetricsRequest.FromString,
                None,
            ),
            "ListSeries": grpc.unary_unary_rpc_method_handler(
                reads.list_series,
                pb.ListSeriesRequest.FromString,
                pb.ListSeriesResponse.SerializeToString,
            ),
        },
    )
