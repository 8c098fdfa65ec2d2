"""A network's channels: which must go together, what structures cost, and the smaller network itself.

`trace` runs the model once and records its operations; `rules` says how channel positions pass through each operation;
`groups` couples the positions into `ChannelGroup`s; `ranking` orders the channels of a group by one of the `criteria`,
which may look at `responses` to data; `slicing` builds the smaller module; `cost` computes macs, flops and params in
closed form; `latency` measures forward time. All are pure functions on modules: the user's model is never changed,
nothing is written, and nothing here knows of a search.
"""
