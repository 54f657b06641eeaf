"""Every error that Pelton raises on purpose. The message says what was wrong and what to do; codes of HTTP live in `server`.

PeltonError
├── InvalidInput        the caller sent something that the model's signature does not accept
│   └── TooLarge        ... and it was the size: a limit is named
├── NotFound            no such model, version or route
├── Unsupported         valid, but this server or model does not do it
├── Refused             nothing wrong with the call, it cannot be taken now; says when to try again
│   ├── Overloaded      the model's queue would make it late
│   ├── NotReady        the model is loading, failed to load, or was unloaded
│   │   └── NoRoom      ... and memory is missing beside what is loaded
│   └── Draining        the process is about to stop
├── DeadlineExceeded    the caller's own deadline passed
├── Cancelled           the caller left; nobody reads this
├── ModelFailed         the model raised, or answered something that its signature forbids
├── Conflict            somebody else changed it first: look at what it is now, then try again
├── PackageInvalid      a model package, or a source that should become one, is not usable
│   ├── SourceInvalid   `pelton add` cannot read that source
│   ├── ArtifactCorrupt a file is not the one that the version names
│   └── Disagrees       a converted model, or a golden request, answers otherwise than the original
├── Untrusted           running this would execute code or a pickle that nobody has trusted
├── SettingInvalid      a setting is unknown or has a wrong value
└── ExtraMissing        an optional dependency is not installed; names the extra
"""

from __future__ import annotations


class PeltonError(Exception):
    """Base of all errors of this package. `str(error)` is meant for the person who made the mistake."""


class InvalidInput(PeltonError):
    """The caller's input does not fit the signature."""


class TooLarge(InvalidInput):
    """A body, tensor or field is over a limit."""


class NotFound(PeltonError):
    """No such model, version or route."""


class Unsupported(PeltonError):
    """A valid request for something that is not served here."""


class Refused(PeltonError):
    """The call cannot be taken now.

    `reason` is a short fixed word for metrics; `retry_after` is in seconds.
    """

    reason = "refused"

    def __init__(self, message: str, retry_after: float = 1.0, reason: str | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        if reason is not None:
            self.reason = reason


class Overloaded(Refused):
    """Taking the call would make it, or others, late."""

    reason = "overloaded"


class NotReady(Refused):
    """The model is not in a state to answer."""

    reason = "not_ready"


class NoRoom(NotReady):
    """A model has no memory beside those that are loaded."""


class Draining(Refused):
    """The process is stopping."""

    reason = "draining"


class DeadlineExceeded(PeltonError):
    """The deadline that the caller itself set has passed."""


class Cancelled(PeltonError):
    """The caller went away."""


class ModelFailed(PeltonError):
    """The model raised, or returned something that does not fit its signature."""


class Conflict(PeltonError):
    """A compare-and-swap found another state than the one that the change was meant for."""


class PackageInvalid(PeltonError):
    """A model package cannot be used."""


class SourceInvalid(PackageInvalid):
    """A source given to `pelton add` cannot be read."""


class ArtifactCorrupt(PackageInvalid):
    """A stored file is missing, cut short or changed."""


class Disagrees(PackageInvalid):
    """Answers differ from those of the original model."""


class Untrusted(PeltonError):
    """Somebody has to say explicitly that this code or pickle is trusted."""


class SettingInvalid(PeltonError):
    """A setting is unknown or its value is wrong."""


class ExtraMissing(PeltonError):
    """An optional dependency is missing."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra {extra!r}: pip install 'pelton[{extra}]'")
        self.extra = extra
