"""Rules for single values, wherever they come in: names, logins in addresses, consent."""
