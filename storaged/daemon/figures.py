"""Figures of the daemon's servers, told beside those of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from storaged.rpc.extension import Metric
from storaged.server.server import Server


def figures(servers: Mapping[str, Server]) -> Iterator[Metric]:
    """Yield the figures of all servers, in the style of OpenMetrics. From any thread."""
    for name, server in servers.items():
        counts, workers = server.counts, server.worker_figures()
        for what, value in (
            ("storaged_clients", len(server.clients())),
            ("storaged_clients_unauthenticated", server.anonymous()),
            ("storaged_clients_accepted_total", counts.accepted),
            ("storaged_calls_total", counts.calls),
            ("storaged_call_errors_total", counts.errors),
            ("storaged_received_bytes_total", counts.received),
            ("storaged_server_workers", workers.workers),
            ("storaged_server_workers_stuck", workers.stuck_workers),
            ("storaged_server_calls_waiting", workers.job_queue_depth),
        ):
            yield Metric(f'{what}{{server="{name}"}}', None, float(value))
