"""Announce tokens: short-lived words of a VO that let its jobs into the VO's swarms, in the query as `k=`.

A token is `base64url(claims).base64url(signature)`: claims are canonical JSON, the signature is ed25519 over the
encoded claims.  A tracker needs only the VOs' public keys.  Knows nothing of trackers.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from jobagent.errors import TrustError

MAX_TOKEN_BYTES = 600
MAX_LIFETIME_S = 7 * 86400


class TokenRefused(TrustError):
    """The token is forged, expired or malformed."""

    exit_code = 246


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says: a VO's namespace, when it ends (seconds since the epoch), and perhaps the bearer's site."""

    namespace: str
    expires_s: int
    site: str = ""


def issue(claims: Claims, key: Ed25519PrivateKey) -> str:
    """Return the token for `claims`, signed with the VO's key."""
    body = json.dumps({"e": claims.expires_s, "n": claims.namespace, "s": claims.site}, sort_keys=True)
    encoded = base64.urlsafe_b64encode(body.encode())
    return (encoded + b"." + base64.urlsafe_b64encode(key.sign(encoded))).decode()


def verify(token: str, keys: Mapping[str, Ed25519PublicKey], *, now_s: float) -> Claims:
    """Return the claims of a valid token; `keys` are the VOs' by namespace.

    Raises:
        TokenRefused: It is malformed, of an unknown VO, not signed by that VO, expired, or valid for too long.
    """
    encoded, _, signature = token.partition(".")
    claims = _decode(token, encoded)
    key = keys.get(claims.namespace)
    if key is None:
        raise TokenRefused("announce token is of an unknown VO")
    try:
        key.verify(base64.b64decode(signature, altchars=b"-_", validate=True), encoded.encode())
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise TokenRefused("announce token is not signed by its VO") from error
    if claims.expires_s <= now_s:
        raise TokenRefused("announce token has expired")
    if claims.expires_s > now_s + MAX_LIFETIME_S:
        raise TokenRefused("announce token is valid for more than a week")
    return claims


def _decode(token: str, encoded: str) -> Claims:
    if not token or len(token) > MAX_TOKEN_BYTES:
        raise TokenRefused("announce token is missing" if not token else "announce token is too long")
    try:
        body = json.loads(base64.b64decode(encoded, altchars=b"-_", validate=True))
        claims = Claims(body["n"], body["e"], body["s"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TokenRefused("announce token is malformed") from error
    if (type(claims.namespace), type(claims.expires_s), type(claims.site)) != (str, int, str):
        raise TokenRefused("announce token is malformed")
    return claims
