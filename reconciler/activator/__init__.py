"""The part of the front door inside the reconciler's process: everything that the edge does not send straight on.

`app` decides what becomes of a request, `guard` who may ask for what, `directory` says what there is to know about
models, `admission` lets a request wait for its model in a line of `holding`, `progress` says how things stand
meanwhile, `patience` for how long the client waits, `upstream` proxies, `json_body` and `form_body` find in a body
which model is meant, `server` listens.
"""
