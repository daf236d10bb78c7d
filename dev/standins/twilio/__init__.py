"""A stand-in for Twilio: REST API, calls that run TwiML, Media Streams, and the far ends.

async with TwilioServer({ACCOUNT: TOKEN}) as twilio:
    twilio.give(ACCOUNT, NUMBER, voice_url=f"{ours}/voice")
    call = await twilio.call(NUMBER, from_="+1415…")     # rings; our voice URL is asked
    stream = await call.streaming()                      # <Connect><Stream> has started
    await call.heard.until_sound()                       # the agent greets
    said = await call.caller.say("What is the time?")    # in real time
    answer_ms = await call.heard.until_sound(said.end_ms)
    await call.caller.press("1#")
    assert stream.longest_queue_ms <= 400
    call.hang_up()
    assert await call.ended() == "completed"
"""

from dev.standins.twilio.call import Call
from dev.standins.twilio.callees import Answer, Busy, RingOut, Unreachable
from dev.standins.twilio.caller import Caller, CallOver, Said
from dev.standins.twilio.errors import Alert
from dev.standins.twilio.media.heard import Heard
from dev.standins.twilio.media.network import Network
from dev.standins.twilio.media.stream import ClearedAt, EchoedMark, MediaStream
from dev.standins.twilio.server import TwilioServer

__all__ = [
    "Alert",
    "Answer",
    "Busy",
    "Call",
    "CallOver",
    "Caller",
    "ClearedAt",
    "EchoedMark",
    "Heard",
    "MediaStream",
    "Network",
    "RingOut",
    "Said",
    "TwilioServer",
    "Unreachable",
]
