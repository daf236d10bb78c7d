"""The ways in which a store of recordings fails. Their texts name no credential."""

from __future__ import annotations


class StoreError(Exception):
    """A store did not do what it was asked to."""


class StoreUnavailable(StoreError):
    """The store could not be reached, or failed for now: try again later."""


class StoreRefused(StoreError):
    """Trying again changes nothing before somebody mends the configuration, the key or the file."""


class StoreMissing(StoreRefused):
    """No store is configured for the region."""


class AlreadyThere(StoreRefused):
    """Other content is stored under that key, and is never replaced."""


class NotStored(StoreRefused):
    """Nothing is stored under that key."""


class SealBroken(StoreRefused):
    """A sealed object was changed, or no configured key opens it."""
