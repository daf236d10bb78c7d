"""The facts about recordings that agents, calls and workers' briefs hold."""
