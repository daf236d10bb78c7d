"""dev.standins.twilio against an application on loopback that plays this system's part."""
