"""Everything about SIP: dialling, trunks, dispatch, legs, the embedded bridge."""
