"""Before a search: what a network offers, and what a search of it would be."""
