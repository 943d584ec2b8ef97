"""The images of a request that are fetched from public addresses, where that is allowed."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import httpx2

from cof.errors import CofError, TooLarge

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""A host and a port -> its IP addresses."""

TOO_LARGE = "An image has more than {:,} bytes: send a smaller one."
_REDIRECTS = 5
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # metadata of Oracle's cloud; older Pythons call it global
        "168.63.129.16/32",  # metadata of Azure
        "64:ff9b::/96",  # NAT64, 6to4 and Teredo reach IPv4 addresses by another name
        "2002::/16",
        "2001::/32",
    )
]


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host by the system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found]


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet: not private, loopback, link-local,
    multicast, reserved, or a cloud's metadata.

    >>> is_public("93.184.216.34"), is_public("10.0.0.1"), is_public("::ffff:169.254.169.254")
    (True, False, False)
    """
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    hidden = any(ip in network for network in _NOT_PUBLIC if network.version == ip.version)
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not hidden


@dataclass(frozen=True)
class Fetcher:
    """Fetches images from public addresses."""

    max_bytes: int  # of one image
    timeout_s: float = 20.0  # for one image, redirects included
    resolve: Resolve = resolve
    transport: httpx2.AsyncBaseTransport | None = None  # None: httpx2's own

    async def fetch(self, address: str) -> bytes:
        """The bytes at an address.

        Raises:
            CofError: it is not public, cannot be read in time, or holds more than `max_bytes`.
        """
        host = address.split("?")[0]
        try:
            return await asyncio.wait_for(self._fetch(address), self.timeout_s)
        except asyncio.TimeoutError:
            raise CofError(f"{host} did not answer in {self.timeout_s:g} s.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise CofError(f"{host} cannot be fetched: {reason}.") from None

    async def _fetch(self, address: str) -> bytes:
        # a proxy would look hosts up again
        transport = self.transport or httpx2.AsyncHTTPTransport(trust_env=False)
        url, data = httpx2.URL(address), bytearray()
        async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
            for _ in range(1 + _REDIRECTS):
                request = await self._request(client, url)
                async with aclosing(await client.send(request, stream=True)) as reply:
                    if reply.has_redirect_location:
                        url = url.join(reply.headers["location"])
                        continue
                    reply.raise_for_status()
                    async for chunk in reply.aiter_raw():
                        data += chunk
                        if len(data) > self.max_bytes:
                            raise TooLarge(TOO_LARGE.format(self.max_bytes))
                    return bytes(data)
        raise CofError(f"{address.split('?')[0]} has more than {_REDIRECTS} redirects.")

    async def _request(self, client: httpx2.AsyncClient, url: httpx2.URL) -> httpx2.Request:
        """That for a URL: its host is looked up once, and the address that was checked is
        connected to.

        Raises:
            CofError: it is not public.
        """
        host = url.raw_host.decode("ascii")
        if url.scheme not in ("http", "https") or url.userinfo:
            raise CofError("Images are fetched from http(s) addresses without a password.")
        addresses = await self.resolve(host, url.port or (443 if url.scheme == "https" else 80))
        if not addresses or not all(map(is_public, addresses)):
            raise CofError(f"{host} is not on the public internet: send the image's data.")
        own = {"Host": url.netloc.decode(), "User-Agent": "cof", "Accept-Encoding": "identity"}
        there = url.copy_with(host=addresses[0])
        return client.build_request("GET", there, headers=own, extensions={"sni_hostname": host})
