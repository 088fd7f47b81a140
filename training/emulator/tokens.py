"""Access tokens as IAM gives them: JSON Web Tokens that this process alone can issue and check."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from typing import Any

__all__ = ["TokenIssuer"]


class TokenIssuer:
    """Issues bearer tokens for any API key and keeps nothing of the key.

    Args:
        lifetime: Seconds until a token expires.
    """

    def __init__(self, lifetime: float = 3600.0) -> None:
        self.lifetime = lifetime
        self._secret = secrets.token_bytes(32)

    def issue(self) -> dict[str, Any]:
        """The answer of the token exchange."""
        now = int(time.time())
        expires = int(now + self.lifetime)
        claims = {"iam_id": "IBMid-emulated", "sub": "emulated", "iat": now, "exp": expires, "jti": secrets.token_hex(8)}
        unsigned = f"{_encode({'alg': 'HS256', 'typ': 'JWT'})}.{_encode(claims)}"
        return {
            "access_token": f"{unsigned}.{self._signature(unsigned)}",
            "refresh_token": "not_supported",
            "token_type": "Bearer",
            "expires_in": expires - now,
            "expiration": expires,
            "scope": "ibm openid",
        }

    def accepts(self, authorization: str) -> bool:
        """True for ``Bearer TOKEN`` with a token of this process that has not expired."""
        unsigned, _, signature = authorization.removeprefix("Bearer ").rpartition(".")
        if not authorization.startswith("Bearer ") or not hmac.compare_digest(signature.encode(), self._signature(unsigned).encode()):
            return False
        return time.time() < float(_claims(unsigned)["exp"])

    def _signature(self, unsigned: str) -> str:
        return _unpadded(hmac.digest(self._secret, unsigned.encode(), hashlib.sha256))


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _encode(part: dict[str, Any]) -> str:
    return _unpadded(json.dumps(part, separators=(",", ":")).encode())


def _claims(unsigned: str) -> dict[str, Any]:
    try:
        payload = unsigned.partition(".")[2]
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (binascii.Error, ValueError):
        return {"exp": 0}
    return claims
