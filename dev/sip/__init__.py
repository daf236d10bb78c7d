"""SIP for the phone and the trunk: messages, digest authentication, a stateless proxy."""
