"""Runs the gateway: checks the port, renders the configuration, keeps Envoy until a signal comes."""

from __future__ import annotations

import asyncio
import logging

from pagoda.children import private_folder
from pagoda.gateway.address import Address, check_port, unix_address
from pagoda.gateway.config import GatewayOptions
from pagoda.gateway.process import EnvoyProcess
from pagoda.gateway.render import render
from pagoda.logs import configure_logging
from pagoda.signals import stop_event

logger = logging.getLogger(__name__)


def main(options: GatewayOptions) -> int:
    """Runs until SIGINT or SIGTERM; 0 after an orderly stop."""
    configure_logging("gateway", options.log_level)
    try:
        check_port(options.listen)
        return asyncio.run(_run(options))
    except OSError as error:
        logger.error("%s", error)
        return 1


async def _run(options: GatewayOptions) -> int:
    stop = stop_event()
    with private_folder("pagoda-gateway-") as folder:
        admin = Address.parse(options.admin) if options.admin else unix_address(folder / "admin.sock")
        config = render(options, admin)
        envoy = await EnvoyProcess.start(config, admin, folder, options.workers, options.log_level)
        logger.info("Envoy listens on http://%s", options.listen)
        ended = asyncio.create_task(envoy.wait())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            stopped.cancel()
            logger.error("Envoy ended by itself with exit code %d", ended.result())
            return 1
        logger.info("draining for up to %g s", options.drain_s)
        await envoy.stop(options.drain_s)
        return 0
