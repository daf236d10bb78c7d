"""A stand-in for Twilio."""

from dev.standins.twilio.server import TwilioServer

__all__ = ["TwilioServer"]
