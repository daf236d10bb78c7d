"""A phone leg's audio: moved both ways, and what is reported of it to the room."""
