"""Everything that speaks of SIP: dialling, trunks, dispatch, legs, the embedded bridge."""
