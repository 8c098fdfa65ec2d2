"""Runs: what is searched, kept in a folder, and goes on after any kill.

`settings` says what a run is, `task` what it works on; `disk` keeps it; `loop` asks, evaluates, writes
down and tells; `search` is a run on the caller's own objects, `config_run` one from a config, `front`
one of several budgets; `entry` is what `abcsearch.search` calls, and `resuming` goes on.
"""
