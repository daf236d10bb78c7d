"""The SIP that phone and trunk are built on: messages, digest authentication, a stateless proxy."""
