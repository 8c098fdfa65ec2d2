"""Networks by name (`registry`), open to the user's own by import path; the other modules hold those that we bring."""
