"""What EC2 says when it refuses, in Remuda's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from remuda.errors import (
    CapacityError,
    ImageError,
    PermanentProviderError,
    ProviderAuthError,
    ProviderError,
    QuotaExceeded,
    TransientProviderError,
)

__all__ = ["code_of", "told"]

MISSING = "the ec2 provider needs boto3"
_CAPACITY = frozenset(
    (
        "InsufficientAddressCapacity",
        "InsufficientCapacity",
        "InsufficientCapacityOnOutpost",
        "InsufficientFreeAddressesInSubnet",
        "InsufficientHostCapacity",
        "InsufficientInstanceCapacity",
        "InsufficientReservedInstanceCapacity",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
        "Unsupported",  # the zone does not have this type of instance
    )
)
_QUOTA = frozenset(
    (
        "AddressLimitExceeded",
        "InstanceLimitExceeded",
        "MaxIOPSLimitExceeded",
        "MaxSpotInstanceCountExceeded",
        "NetworkInterfaceLimitExceeded",
        "PrivateIpAddressLimitExceeded",
        "ResourceLimitExceeded",
        "VcpuLimitExceeded",
        "VolumeLimitExceeded",
    )
)
_AUTH = frozenset(
    (
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "Blocked",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "MissingAuthenticationToken",
        "OptInRequired",
        "PendingVerification",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
        "UnrecognizedClientException",
    )
)
_TRANSIENT = frozenset(
    (
        "IdempotentParameterMismatch",  # an earlier call, with settings of then, made the VM
        "InternalError",
        "InternalFailure",
        "InvalidInstanceID.NotFound",  # it may be too new
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestTimeout",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "Unavailable",
    )
)
_CREDENTIALS = "boto3 finds them as the aws command does; see docs/ec2.md"


def code_of(error: BaseException) -> str:
    """Return EC2's code of an error of botocore; "" if it is not an answer."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn what botocore raises into a ProviderError that says what was asked, as in "to launch"."""
    try:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectionError,
            HTTPClientError,
        )
    except ImportError as error:
        raise PermanentProviderError(MISSING, hint="pip install 'remuda[ec2]'") from error
    try:
        yield
    except ClientError as error:
        raise _refused(what, error) from error
    except (ConnectionError, HTTPClientError) as error:  # no answer
        raise TransientProviderError(
            f"EC2 does not answer, asked {what}: {_short(error)}"
        ) from error
    except BotoCoreError as error:
        raise _not_asked(what, error) from error


def _refused(what: str, error: BaseException) -> ProviderError:
    answer = _answer(error)
    code, about = code_of(error), answer.get("ResponseMetadata", {})
    status = int(about.get("HTTPStatusCode") or 0)
    message = f"EC2 refuses {what}: {code}: {_short(answer.get('Error', {}).get('Message', ''))}"
    found = _error(code, status, message)
    # What is asked once more with a client token after a success gets the success again.
    certain = 400 <= status < 500 and not about.get("RetryAttempts")
    certain = certain and not isinstance(found, TransientProviderError)
    found.made_nothing = certain or isinstance(found, CapacityError)
    return found


def _error(code: str, status: int, message: str) -> ProviderError:
    name = code.removeprefix("Server.").removeprefix("Client.")
    if name in _CAPACITY:
        return CapacityError(message)
    if name in _QUOTA:
        return QuotaExceeded(message, hint="raise it in Service Quotas, or list another offer")
    if name.startswith("InvalidAMI") or (name == "AuthFailure" and "image" in message.lower()):
        return ImageError(message, hint="the pool's image must be an AMI of its region")
    if name in _AUTH:
        return ProviderAuthError(message, hint="see the permissions in docs/ec2.md")
    if name in _TRANSIENT or status >= 500 or not status:
        return TransientProviderError(message)
    return PermanentProviderError(message)


def _not_asked(what: str, error: BaseException) -> ProviderError:
    """Return the error for what botocore found before it asked, or in an answer it cannot read."""
    kind, message = type(error).__name__, f"cannot ask EC2 {what}: {_short(error)}"
    found: ProviderError
    if kind == "ResponseParserError":
        return TransientProviderError(message)
    if any(word in kind for word in ("Credential", "Profile", "Token", "SSO", "Login")):
        passing = ("CredentialRetrievalError", "MetadataRetrievalError")  # a service did not answer
        found = (
            TransientProviderError(message)
            if kind in passing
            else ProviderAuthError(message, hint=_CREDENTIALS)
        )
    else:
        found = PermanentProviderError(message)
    found.made_nothing = True
    return found


def _answer(error: BaseException) -> dict[str, Any]:
    answer = getattr(error, "response", None)
    return answer if isinstance(answer, dict) else {}


def _short(text: object) -> str:
    """Return a message without what EC2 encodes for its own tools."""
    words = str(text).partition("Encoded authorization failure message")[0].strip()
    return " ".join(words.split())[:500]
