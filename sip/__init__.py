"""Everything that speaks of SIP: dialling, trunks, dispatch, a phone's leg in a room, the embedded bridge."""
