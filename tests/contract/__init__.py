"""What fakes promise, asked of the fakes and of the real thing."""
