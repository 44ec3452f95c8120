"""The edge, the front door's first half: a HAProxy that sends a hot model's requests straight to its application.

`edge.py` is the facade; the rest of the package prepares its files, runs its process and speaks to its socket.
"""
