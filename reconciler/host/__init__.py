"""What every shell module shares: settings, structured logging, files in the state directory."""
