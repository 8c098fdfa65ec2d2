"""Networks by name (`registry`), open to the user's own by import path; `resnet` holds those that we bring."""
