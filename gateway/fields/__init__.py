"""Rules for single values, whatever the request: names, logins in URLs, opt-ins."""
