"""Hosts and origins, each in the one form of all that mean the same."""

from __future__ import annotations

import ipaddress
import re

ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^/\s,?#]+", re.IGNORECASE)
HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
AUTHORITY = re.compile(r"(.*?)\.?(?::([0-9]*))?", re.DOTALL)
DEFAULT_PORTS = {"http": "80", "https": "443"}

# Where the pages of development servers come from: Parcel, React and Next.js, Vite, Angular, Astro, Live Server,
# Storybook, Python's http.server, webpack. Not all of loopback: where identity headers are believed, a page that
# may ask may be anybody, and whatever else runs on a developer's machine (notebooks, consoles) has pages, too.
DEVELOPMENT_PORTS = (1234, 3000, 3001, 4173, 4200, 4321, 5173, 5174, 5500, 6006, 8000, 8080, 8081)
DEVELOPMENT = frozenset(
    f"http://{host}:{port}" for host in ("localhost", "127.0.0.1") for port in DEVELOPMENT_PORTS
)


def split_authority(authority: str) -> tuple[str, str]:
    """Return the host in small letters, without a dot at its end, and the port, "" if there is none."""
    match = AUTHORITY.fullmatch(authority.lower())
    assert match is not None
    return match[1], match[2] or ""


def normal_origin(origin: str) -> str:
    """Return an origin in the one form of all that mean it: small letters, no default port, no dot at the end."""
    scheme, separator, authority = origin.lower().partition("://")
    host, port = split_authority(authority)
    return f"{scheme}{separator}{host}" + (f":{port}" if port and port != DEFAULT_PORTS.get(scheme) else "")


def parse_origins(value: str) -> frozenset[str]:
    origins: set[str] = set()
    for origin in listed(value):
        if origin == "development":
            origins |= DEVELOPMENT
        elif ORIGIN.fullmatch(origin.rstrip("/")):
            origins.add(normal_origin(origin.rstrip("/")))
        else:
            raise ValueError
    return frozenset(origins)


def parse_hosts(value: str) -> frozenset[str]:
    hosts = [host.lower().rstrip(".").strip("[]") for host in listed(value)]
    for host in hosts:
        if not HOST_NAME.fullmatch(host):
            ipaddress.ip_address(host)
    return frozenset(hosts)


def listed(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]
