"""One gateway for all tests of a module: each has runs of its own."""

import pytest

from tests.support.gateway_process import GatewayProcess


@pytest.fixture
def gateway(mortal_gateway: GatewayProcess) -> GatewayProcess:
    """The module's gateway, which a test may kill and start."""
    return mortal_gateway
