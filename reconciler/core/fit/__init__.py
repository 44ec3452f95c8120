"""How much memory a model takes on each GPU, before anything is downloaded or loaded. Pure.

`architecture` reads a config.json, `tensors` sums weights, `kv` the KV cache, `estimate` adds it all up as vLLM
0.29 does, `parallel` says which parallel sizes are possible and `advice` what to change when it does not fit.
"""
