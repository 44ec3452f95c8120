"""The part of the front door inside the reconciler's process: everything that the edge does not send straight on.

`app` decides what becomes of a request, `directory` says what it may know about models, `upstream` proxies,
`json_body` and `form_body` find the model's name in a body, `server` listens.
"""
