"""Everything that touches a run folder.

`settings` says what a run is; `folder` and `journal` keep it on disk; `loop` asks, evaluates and tells; `run` is the
search on the user's own objects; `configured` is the same from a config, with base network, fine-tuning and export;
`report` draws its table.
"""
