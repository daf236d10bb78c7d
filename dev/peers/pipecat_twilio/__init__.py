"""A Pipecat bot on Twilio Media Streams, in an environment of its own (requirements.txt)."""
