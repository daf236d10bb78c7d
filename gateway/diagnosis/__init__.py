"""Why a call failed: rules over a call's record and timeline, and how their findings are shown."""
