"""Data sets by name (`registry`): three splits, never mixed (`splits`), in memory or decoded when needed (`stream`)."""
