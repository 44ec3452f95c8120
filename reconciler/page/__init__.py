"""The page: server-rendered HTML over the same operations as the API. Speaks to nothing but them."""
