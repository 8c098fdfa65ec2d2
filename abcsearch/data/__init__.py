"""Data sets by name (`registry`): three splits in memory, never mixed (`splits`)."""
