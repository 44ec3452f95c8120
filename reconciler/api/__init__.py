"""The management API: what people and programs may see and ask for over HTTP, under `/api/v1`."""
