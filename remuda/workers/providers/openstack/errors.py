"""What OpenStack says when it refuses, in Remuda's errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from remuda.errors import (
    CapacityError,
    ImageError,
    PermanentProviderError,
    ProviderAuthError,
    ProviderError,
    QuotaExceeded,
    TransientProviderError,
)

__all__ = ["MISSING", "of_fault", "status_of", "told"]

MISSING = "the openstack provider needs openstacksdk"
_QUOTA = re.compile(r"quota|limit exceeded|maximum number of (ports|fixed ips)", re.IGNORECASE)
_CAPACITY = re.compile(
    r"no valid host|availability zone is not available|exceeded max(imum number of)? "
    r"(scheduling attempts|retries)|insufficient (compute )?resources|no more ip addresses",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"\bimage\b", re.IGNORECASE)
_CREDENTIALS = "the workers' clouds.yaml has them; see docs/openstack.md"


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn what the SDK raises into a ProviderError that says what was asked, as in "to launch"."""
    try:
        from keystoneauth1 import exceptions as keystone
        from openstack import exceptions as sdk
    except ImportError as error:
        raise PermanentProviderError(MISSING, hint="pip install 'remuda[openstack]'") from error
    try:
        yield
    except ProviderError:
        raise
    except (sdk.HttpException, keystone.HttpError) as error:
        raise _refused(what, error) from error
    except (keystone.ConnectionError, sdk.ResourceTimeout) as error:
        raise TransientProviderError(
            f"OpenStack does not answer, asked {what}: {_short(error)}"
        ) from error
    except (
        sdk.ConfigException,
        keystone.AuthPluginException,
        keystone.AuthorizationFailure,
    ) as error:
        found = ProviderAuthError(f"cannot log in to OpenStack: {_short(error)}", hint=_CREDENTIALS)
        found.made_nothing = True
        raise found from error
    except (sdk.SDKException, keystone.ClientException) as error:
        raise TransientProviderError(f"cannot ask OpenStack {what}: {_short(error)}") from error


def status_of(error: BaseException | None) -> int:
    """Return the HTTP status of what was refused, 0 if there is none."""
    return int(getattr(error, "status_code", 0) or getattr(error, "http_status", 0) or 0)


def of_fault(name: str, message: str) -> ProviderError:
    """Return the error for a server that Nova could not build."""
    said = f"OpenStack could not build {name}: {_short(message or 'it does not say why')}"
    if _CAPACITY.search(message):
        return CapacityError(said)
    if _QUOTA.search(message):
        return QuotaExceeded(said, hint="raise it, or list another offer")
    if _IMAGE.search(message):
        return ImageError(said)
    return TransientProviderError(said)


def _refused(what: str, error: BaseException) -> ProviderError:
    status = status_of(error) or (404 if type(error).__name__ == "NotFoundException" else 0)
    said = str(getattr(error, "details", "") or error)
    found = _error(status, f"OpenStack refuses {what}: {status}: {_short(said)}", said)
    # The SDK sends nothing twice: who is refused has made nothing.
    found.made_nothing = 400 <= status < 500 and not isinstance(found, TransientProviderError)
    return found


def _error(status: int, message: str, said: str) -> ProviderError:
    if status in (403, 413) and _QUOTA.search(said):
        return QuotaExceeded(message, hint="raise it, or list another offer")
    if status in (401, 403):
        return ProviderAuthError(message, hint=_CREDENTIALS)
    lost_page = status == 400 and "marker" in said.lower()  # its last server went meanwhile
    if status in (408, 409, 413, 429) or status >= 500 or not status or lost_page:
        return TransientProviderError(message)
    if _CAPACITY.search(said):
        return CapacityError(message)
    if status == 400 and _IMAGE.search(said):
        return ImageError(message)
    return PermanentProviderError(message)


def _short(text: object) -> str:
    return " ".join(str(text).split())[:500]
