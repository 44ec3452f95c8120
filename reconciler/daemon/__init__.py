"""The process that stays: the loop, the front door, the API and the page, put together and kept alive."""
