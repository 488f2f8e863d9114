"""Every error Remuda raises on purpose, in one tree.

RemudaError
├── BadInput (ValueError)            what was given can never be right
├── ConfigError                      a setting is missing or wrong
├── NotFound (LookupError)           UnknownPool, UnknownJob, UnknownArray, UnknownOwner,
│   │                                UnknownLease, UnknownSecret, UnknownProfile,
│   └── InstanceNotFound (KeyError)  an unknown VM
├── AlreadyExists                    the name is taken
├── Refused                          the state forbids it; nothing was changed
│   ├── IllegalTransition
│   ├── SetTooLate (AttributeError)  it can be set only until the pool is submitted
│   ├── PoolLimitReached             the owner may have no more pools
│   └── StaleHolder                  an old fencing token
├── Unreachable                      DatabaseUnavailable, BrokerUnavailable, VmUnreachable
├── SecretUnreadable                 the key it was encrypted with is not here
├── EmbeddedError                    the one-machine default cannot run here
├── BackendError                     running a job on a resource
│   ├── Recoverable                  MaximumCapacityReached, ResourceNotReady
│   └── NoResources, DataStagingError, OutputNotAvailable, AuthError, PreparationFailed
├── ProviderError                    making or removing a VM
│   ├── QuotaExceeded, CapacityError, ProviderAuthError, TransientProviderError
│   └── PermanentProviderError       ImageError
├── JobFailed                        the job ended, but not well
├── NoVmAvailable
└── WaitTimeout (TimeoutError)
"""

from __future__ import annotations


class RemudaError(Exception):
    """Something in Remuda went wrong."""

    def __init__(self, message: str | None = None, *, hint: str = "") -> None:
        """Take a message (the class's docstring if None) and a hint: what the user can do."""
        self.message = message if message is not None else (type(self).__doc__ or "").strip()
        self.hint = hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadInput(RemudaError, ValueError):
    """The input can never be right."""


class ConfigError(RemudaError):
    """A setting is missing or wrong."""


class NotFound(RemudaError, LookupError):
    """There is no such thing."""


class UnknownPool(NotFound):
    """There is no pool of that name."""


class UnknownJob(NotFound):
    """There is no job of that id."""


class UnknownArray(NotFound):
    """There is no array of that id."""


class UnknownOwner(NotFound):
    """There is no owner of that name."""


class UnknownProfile(NotFound):
    """There is no profile of that name."""


class UnknownSecret(NotFound):
    """There is no secret of that name."""


class UnknownLease(NotFound):
    """There is no lease of that id."""


class InstanceNotFound(NotFound, KeyError):
    """There is no VM of that id."""

    __str__ = RemudaError.__str__


class AlreadyExists(RemudaError):
    """The name is already taken."""


class Refused(RemudaError):
    """The present state forbids it; nothing was changed."""


class IllegalTransition(Refused):
    """There is no such transition from the present state."""


class SetTooLate(Refused, AttributeError):
    """It can be set only until the pool is submitted."""


class PoolLimitReached(Refused):
    """The maximum number of pools is reached."""


class StaleHolder(Refused):
    """The fencing token is not the present holder's."""


class Unreachable(RemudaError):
    """A service does not answer."""


class DatabaseUnavailable(Unreachable):
    """The database does not answer."""


class BrokerUnavailable(Unreachable):
    """The message broker does not answer."""


class VmUnreachable(Unreachable):
    """The VM does not answer."""


class SecretUnreadable(RemudaError):
    """The key the secret was encrypted with is not here."""


class EmbeddedError(RemudaError):
    """The embedded default cannot run here."""


class BackendError(RemudaError):
    """The resource could not do what was asked."""


class Recoverable(BackendError):
    """Not now; the job stays as it is and is tried again."""


class MaximumCapacityReached(Recoverable):
    """The resource is full."""


class ResourceNotReady(Recoverable):
    """The resource is still warming up."""


class NoResources(BackendError):
    """Nothing here can ever run this job."""


class DataStagingError(BackendError):
    """A file could not be copied in or out."""


class OutputNotAvailable(BackendError):
    """The job has no output yet."""


class AuthError(BackendError):
    """The resource refused the credentials."""


class PreparationFailed(BackendError):
    """The pool's preparation command did not succeed on the VM."""


class ProviderError(RemudaError):
    """The provider could not do what was asked."""

    made_nothing = False  # of a failed spawn: this call has certainly left no machine behind


class QuotaExceeded(ProviderError):
    """The provider's quota is used up."""


class CapacityError(ProviderError):
    """The provider has no machine of that kind left."""


class ProviderAuthError(ProviderError):
    """The provider refused the credentials."""


class TransientProviderError(ProviderError):
    """The provider failed in a way that may pass."""


class PermanentProviderError(ProviderError):
    """The provider failed in a way that will not pass."""


class ImageError(PermanentProviderError):
    """The provider has no such image, or no VM can be made of it."""


class NoVmAvailable(RemudaError):
    """No VM is free for this owner and sandbox."""


class WaitTimeout(RemudaError, TimeoutError):
    """It did not happen in the time given."""


class JobFailed(RemudaError):
    """The job ended, but not well."""

    def __init__(
        self,
        message: str | None = None,
        *,
        job_id: int = 0,
        reason: str = "",
        exit_code: int | None = None,
        signal: int | None = None,
        attempt: int = 0,
        stderr_tail: str = "",
        hint: str = "",
    ) -> None:
        """Carry how job `job_id` ended on its `attempt`-th try (1-based; 0: never started)."""
        super().__init__(message, hint=hint)
        self.job_id = job_id
        self.reason = reason
        self.exit_code = exit_code
        self.signal = signal
        self.attempt = attempt
        self.stderr_tail = stderr_tail
