"""Telling a web-hook that a job is finished, without becoming anybody's way into the network.

An address is used only if its host is on the operator's list; every address that its name has now must be public, and the
connection goes to the very address that was looked at, so that a name which changes between two look-ups gains nothing. No
redirect is followed, no proxy is used, and of the answer only the status is read.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hqtl_common.errors import ConfigError
from serving.errors import FieldError, ServiceError

__all__ = ["SIGNATURE", "WebHook", "WebHookError", "signature"]

SIGNATURE = "X-HQTL-Signature"
_TIMEOUT_S = 10.0
# IPv6 addresses that a gateway turns into IPv4 ones, private ones among them (RFC 4291 2.5.5.1, RFC 6052, RFC 8215).
_TRANSLATED = tuple(map(ipaddress.ip_network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")))
_PORTS = {"https": 443, "http": 80}


class WebHookError(ServiceError):
    """A web-hook was not told: its address may not be used now, or it did not take the message."""


@dataclass(frozen=True, slots=True)
class _Target:
    secure: bool
    host: str
    port: int
    path: str


class WebHook:
    """Where finished jobs may be told of.

    Args:
        hosts: ``name`` (its default port) or ``name:port``.
        secret: Signs the messages.
        private: Allow private addresses and plain HTTP.
        trusted: File of certificates (PEM) that are trusted in place of the system's.

    Raises:
        ConfigError: The file of certificates cannot be used.
    """

    def __init__(self, hosts: tuple[str, ...], secret: str, *, private: bool = False, trusted: Path | None = None) -> None:
        self._hosts, self._secret, self._private = frozenset(hosts), secret, private
        try:
            self._tls = ssl.create_default_context(cafile=trusted) if hosts else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        except OSError as error:  # SSLError is one
            raise ConfigError(
                f"HQTL_WEBHOOK_CA must be a file of certificates in PEM form; {str(trusted)!r} cannot be used: {error}"
            ) from error

    def check(self, url: str) -> None:
        """Refuse an address that is not on the list; nothing is looked up.

        Raises:
            FieldError: It is not.
        """
        self._target(url)

    def tell(self, url: str, message: Mapping[str, Any]) -> None:
        """Send a signed message once.

        Raises:
            FieldError: The address is not on the list.
            WebHookError: It could not be delivered.
        """
        target, body = self._target(url), json.dumps(message).encode()
        try:
            connection = self._connect(target, self._address(target))
            try:
                connection.request("POST", target.path, body, self._headers(target, body))
                status = connection.getresponse().status
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise WebHookError(f"{target.host} did not take it: {type(error).__name__}: {error}") from error
        if not 200 <= status < 300:
            raise WebHookError(f"{target.host} answered {status}, not 2xx (redirects are not followed)")

    def _headers(self, target: _Target, body: bytes) -> dict[str, str]:
        now = int(time.time())
        default = target.port == _PORTS["https" if target.secure else "http"]
        return {
            "Host": target.host if default else f"{target.host}:{target.port}",
            "Content-Type": "application/json",
            "User-Agent": "hqtl",
            "Connection": "close",
            SIGNATURE: f"t={now},v1={signature(self._secret, now, body)}",
        }

    def _target(self, url: str) -> _Target:
        expected = "must be https://HOST[:PORT]/PATH of a host that the operator allows"
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise FieldError("webhook", f"{expected}; {error}") from error
        schemes = {"https", "http"} if self._private else {"https"}
        listed = f"{host}:{port}" in self._hosts or (host in self._hosts and port == _PORTS.get(parts.scheme))
        plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
        if not plain or parts.scheme not in schemes or not listed or "@" in parts.netloc or parts.fragment:
            raise FieldError("webhook", f"{expected}; allowed here: {', '.join(sorted(self._hosts)) or 'none'}")
        return _Target(parts.scheme == "https", host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))

    def _address(self, target: _Target) -> str:
        """An address of the host; all that it has must be public."""
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)}
        closed = sorted(address for address in found if not _is_public(address))
        if closed and not self._private:
            raise WebHookError(f"{target.host} has the address {closed[0]}, which is not public")
        return min(found)

    def _connect(self, target: _Target, address: str) -> http.client.HTTPConnection:
        """A connection to an address that was looked at; the certificate must be the host's."""
        connection = http.client.HTTPConnection(target.host, target.port, timeout=_TIMEOUT_S)
        plain = socket.create_connection((address, target.port), _TIMEOUT_S)
        try:
            connection.sock = self._tls.wrap_socket(plain, server_hostname=target.host) if target.secure else plain
        except BaseException:
            plain.close()
            raise
        return connection


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """HMAC-SHA-256 (hex) of ``TIMESTAMP.BODY``: what a receiver computes and compares."""
    return hmac.new(secret.encode(), str(timestamp).encode() + b"." + body, hashlib.sha256).hexdigest()


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    if any(found in network for network in _TRANSLATED):
        return False
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (inner is None or inner.is_global)
